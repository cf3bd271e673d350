//! The projector from the tower's tokens to those of the text model: `Florence2MultiModalProjector` in
//! transformers' `modeling_florence2.py`.

use tch::{Kind, Tensor};

use super::config::{EPS, VisionConfig};
use super::names::MICROSOFT_PROJECTION;
use crate::nn::layers::{Linear, size4};
use crate::nn::norm::LayerNorm;
use crate::snapshot::weights::WeightLoader;

const NAME: &str = "model.multi_modal_projector";

/// The projector: learned positions, a linear map and a norm.
#[derive(Debug)]
pub(super) struct Projector {
    /// The position tables of rows and columns, [positions, half of the channels] each; the columns have the
    /// larger half.
    rows: Tensor,
    columns: Tensor,
    /// The table of positions in time, [times, channels]; an image is at time 0.
    times: Tensor,
    projection: Linear,
    norm: LayerNorm,
}

impl Projector {
    pub(super) fn load(weights: &mut WeightLoader, config: &VisionConfig, microsoft: bool) -> Self {
        let (width, positions) = (config.width(), config.position_embeddings());
        let mut table = |part: &str, shape: [i64; 2]| weights.tensor(&format!("{NAME}.{part}"), &shape);
        Self {
            rows: table("image_position_embed.row_embeddings.weight", [positions, width / 2]),
            columns: table("image_position_embed.column_embeddings.weight", [positions, width - width / 2]),
            times: table("visual_temporal_embed.pos_idx_to_embed", [config.temporal_embeddings(), width]),
            projection: projection(weights, width, config.projection_dim, microsoft),
            norm: LayerNorm::load(weights, &format!("{NAME}.image_proj_norm"), config.projection_dim, EPS),
        }
    }

    /// Projects [batch, rows, columns, channels] to [batch, 1 + rows · columns, text width], the mean first.
    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let (_, rows, columns, _) = size4(x);
        let of_columns = self.columns.narrow(0, 0, columns).unsqueeze(0).expand([rows, -1, -1], false);
        let of_rows = self.rows.narrow(0, 0, rows).unsqueeze(1).expand([-1, columns, -1], false);
        let placed = x + Tensor::cat(&[of_columns, of_rows], -1) + self.times.get(0);
        let tokens = placed.flatten(1, 2);
        let mean = tokens.mean_dim([1].as_slice(), true, None::<Kind>);
        self.norm.forward(&self.projection.forward(&Tensor::cat(&[mean, tokens], 1)))
    }
}

fn projection(weights: &mut WeightLoader, inputs: i64, outputs: i64, microsoft: bool) -> Linear {
    if !microsoft {
        return Linear::load(weights, &format!("{NAME}.image_projection"), inputs, outputs, false);
    }
    let transposed = weights.tensor(MICROSOFT_PROJECTION, &[inputs, outputs]);
    // An empty tensor stands for a faulty one, which `finish` will report.
    let weight = if transposed.numel() == 0 { transposed } else { transposed.tr().contiguous() };
    Linear::from_tensors(weight, None)
}
