//! The image tower, for images of a fixed resolution or of any (NaFlex).

use std::collections::BTreeMap;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::NAMES;
use crate::ModelError;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::inspect::fixture::Fixture;
use crate::nn::blocks::Mlp;
use crate::nn::encoder::{Encoder, EncoderInputs, Sizes};
use crate::nn::layers::{Activation, Linear, PatchEmbedding, attention, split_heads};
use crate::nn::norm::LayerNorm;
use crate::snapshot::limits::{PATCH_MAX, WIDTH_MAX, in_range};
use crate::snapshot::weights::WeightLoader;

/// The section `vision_config`; the defaults are those of transformers' `SiglipVisionConfig` and, for
/// `num_patches`, `Siglip2VisionConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct VisionConfig {
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    image_size: i64,
    num_patches: i64,
    patch_size: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    vision_use_head: bool,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            num_patches: 256,
            patch_size: 16,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            vision_use_head: true,
        }
    }
}

impl VisionConfig {
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let in_vision = |fault| format!("vision_config: {fault}");
        in_range("patch_size", self.patch_size, 1..=PATCH_MAX).map_err(in_vision)?;
        in_range("image_size", self.image_size, self.patch_size..=WIDTH_MAX).map_err(in_vision)?;
        in_range("num_patches", self.num_patches, 1..=WIDTH_MAX).map_err(in_vision)?;
        if !self.vision_use_head {
            return Err(in_vision(
                "vision_use_head = false is not supported: the pooling head gives the embedding".to_owned(),
            ));
        }
        self.sizes().check().map_err(in_vision)
    }

    /// Checks that the processor outputs images that the tower takes.
    pub(super) fn check_preprocessor(&self, naflex: bool, preprocessor: &Preprocessor) -> Result<(), String> {
        let side = self.image_size;
        match (naflex, preprocessor.fixed_size(), preprocessor.naflex_patch()) {
            (false, Some(size), _) if size == (side, side) => Ok(()),
            (false, ..) => Err(format!(
                "preprocessor_config.json does not give images of {side} × {side}, as image_size says"
            )),
            (true, _, Some(patch)) if patch == self.patch_size => Ok(()),
            (true, ..) => {
                Err(format!("preprocessor_config.json does not give patches of {} pixels", self.patch_size))
            }
        }
    }

    /// Returns the number of positions along one side of the square position table.
    fn table_side(&self, naflex: bool) -> i64 {
        if naflex { (self.num_patches as f64).sqrt() as i64 } else { self.image_size / self.patch_size }
    }
}

/// A batch of images in the layout that the tower takes.
#[derive(Debug)]
pub(super) enum VisionBatch {
    /// Pixels of a fixed size, [batch, 3, height, width].
    Fixed(Tensor),
    /// Patch vectors padded to one count, [batch, patches, patch·patch·3]; a mask of the patches that are an
    /// image's own, [batch, patches]; and the rows and columns of each image.
    NaFlex { patches: Tensor, own: Tensor, grids: Vec<[i64; 2]> },
}

impl VisionBatch {
    /// Stacks images of one model's preprocessor; `max_patches` is given for a NaFlex model.
    pub(super) fn stack(images: &[&Pixels], max_patches: Option<i64>, device: Device) -> Self {
        let Some(length) = max_patches else {
            return Self::Fixed(crate::image::preprocess::stack(images, device));
        };
        let grids: Vec<[i64; 2]> = images.iter().map(|image| image.grid().unwrap_or_default()).collect();
        let padded: Vec<Tensor> = images
            .iter()
            .map(|image| image.values.constant_pad_nd([0, 0, 0, length - image.values.size()[0]]))
            .collect();
        let counts: Vec<i64> = grids.iter().map(|[rows, columns]| rows * columns).collect();
        let own = Tensor::arange(length, (Kind::Int64, Device::Cpu))
            .unsqueeze(0)
            .less_tensor(&Tensor::from_slice(&counts).unsqueeze(1));
        Self::NaFlex {
            patches: Tensor::stack(&padded, 0).to_device(device),
            own: own.to_device(device),
            grids,
        }
    }

    /// Returns the inputs that the reference gave its model.
    pub(super) fn of_fixture(fixture: &Fixture, device: Device) -> Result<Self, ModelError> {
        let pixels = fixture.input("pixel_values")?.f_to_device(device)?;
        if pixels.dim() == 4 {
            return Ok(Self::Fixed(pixels));
        }
        let shapes = Vec::<i64>::try_from(&fixture.input("spatial_shapes")?.f_flatten(0, -1)?)?;
        Ok(Self::NaFlex {
            patches: pixels,
            own: fixture.input("pixel_attention_mask")?.f_to_device(device)?.f_to_kind(Kind::Bool)?,
            grids: shapes.chunks_exact(2).map(|shape| [shape[0], shape[1]]).collect(),
        })
    }

    /// Returns the tensors under the names that the reference's processor gives them.
    pub(super) fn named(&self) -> BTreeMap<String, Tensor> {
        let named = |name: &str, tensor: &Tensor| (name.to_owned(), tensor.shallow_clone());
        match self {
            Self::Fixed(pixels) => BTreeMap::from([named("pixel_values", pixels)]),
            Self::NaFlex { patches, own, grids } => BTreeMap::from([
                named("pixel_values", patches),
                named("pixel_attention_mask", own),
                named("spatial_shapes", &Tensor::from_slice(&grids.concat()).view([-1, 2])),
            ]),
        }
    }

    /// Returns whether this is a batch of patches of any resolution.
    pub(super) fn is_naflex(&self) -> bool {
        matches!(self, Self::NaFlex { .. })
    }

    /// Returns the mask of what attention may look at, [batch, 1, 1, patches]; images of a fixed size need
    /// none.
    fn attention_mask(&self) -> Option<Tensor> {
        match self {
            Self::Fixed(_) => None,
            Self::NaFlex { own, .. } => Some(own.unsqueeze(1).unsqueeze(1)),
        }
    }
}

/// The layer that turns patches into embeddings.
#[derive(Debug)]
enum Embedding {
    /// A convolution over pixels.
    Convolution(PatchEmbedding),
    /// A linear map of patch vectors that the preprocessor has cut.
    Linear(Linear),
}

/// A transformer over the patches of images, with a pooling head.
#[derive(Debug)]
pub(super) struct VisionTower {
    embedding: Embedding,
    /// The position table, [side·side, hidden].
    positions: Tensor,
    /// The number of positions along one side of the table.
    side: i64,
    encoder: Encoder,
    norm: LayerNorm,
    head: PoolingHead,
}

impl VisionTower {
    pub(super) fn load(weights: &mut WeightLoader, config: &VisionConfig, naflex: bool) -> Self {
        let (sizes, hidden, patch) = (config.sizes(), config.hidden_size, config.patch_size);
        let side = config.table_side(naflex);
        let name = "vision_model.embeddings.patch_embedding";
        Self {
            embedding: if naflex {
                Embedding::Linear(Linear::load(weights, name, 3 * patch * patch, hidden, true))
            } else {
                Embedding::Convolution(PatchEmbedding::load(weights, name, patch, hidden))
            },
            positions: weights
                .tensor("vision_model.embeddings.position_embedding.weight", &[side * side, hidden]),
            side,
            encoder: Encoder::load(weights, "vision_model.encoder", &NAMES, &sizes),
            norm: LayerNorm::load(weights, "vision_model.post_layernorm", hidden, config.layer_norm_eps),
            // The head multiplies one row for each image, and nothing after it evens out the errors of fp8.
            head: weights.without_fp8(|weights| PoolingHead::load(weights, "vision_model.head", &sizes)),
        }
    }

    fn embed(&self, batch: &VisionBatch) -> Tensor {
        let kind = self.positions.kind();
        match (&self.embedding, batch) {
            (Embedding::Convolution(layer), VisionBatch::Fixed(pixels)) => {
                layer.forward(&pixels.to_kind(kind)) + &self.positions
            }
            (Embedding::Linear(layer), VisionBatch::NaFlex { patches, grids, .. }) => {
                let length = patches.size()[1];
                let positions: Vec<Tensor> =
                    grids.iter().map(|grid| self.resized_positions(*grid, length)).collect();
                layer.forward(&patches.to_kind(kind)) + Tensor::stack(&positions, 0)
            }
            _ => unreachable!("the preprocessor was checked against the tower when both were loaded"),
        }
    }

    /// Returns the embeddings and each layer's output, all [batch, patches, hidden].
    pub(super) fn hidden_states(&self, batch: &VisionBatch) -> Vec<Tensor> {
        let attention_mask = batch.attention_mask();
        let inputs = EncoderInputs { rope: None, attention_mask: attention_mask.as_ref() };
        self.encoder.hidden_states(self.embed(batch), inputs)
    }

    /// Returns the position table resized to an image's grid, bilinear with antialiasing, then filled up to
    /// `length` with its first entry: [length, hidden].
    fn resized_positions(&self, [rows, columns]: [i64; 2], length: i64) -> Tensor {
        let table = self.positions.view([1, self.side, self.side, -1]).permute([0, 3, 1, 2]);
        // On a CPU, the operator exists in fp32 only.
        let on_cpu = self.positions.device() == Device::Cpu;
        let table = if on_cpu { table.to_kind(Kind::Float) } else { table };
        let resized = table.internal_upsample_bilinear2d_aa([rows, columns], false, None::<f64>, None::<f64>);
        let own = resized.flatten(2, 3).squeeze_dim(0).tr().to_kind(self.positions.kind());
        let padding = own.narrow(0, 0, 1).expand([length - rows * columns, -1], false);
        Tensor::cat(&[own, padding], 0)
    }

    /// Returns the last hidden state after the final norm, [batch, patches, hidden].
    pub(super) fn output(&self, batch: &VisionBatch) -> Tensor {
        let attention_mask = batch.attention_mask();
        let inputs = EncoderInputs { rope: None, attention_mask: attention_mask.as_ref() };
        self.encoder.output(self.embed(batch), inputs, &self.norm)
    }

    /// Pools the tower's output into one embedding for each image, [batch, hidden].
    pub(super) fn pool(&self, output: &Tensor, batch: &VisionBatch) -> Tensor {
        self.head.forward(output, batch.attention_mask().as_ref())
    }
}

/// The pooling head: one learned query attends to all patches, then an MLP with a residual follows, as in
/// transformers' `Siglip(2)MultiheadAttentionPoolingHead`.
#[derive(Debug)]
struct PoolingHead {
    /// The learned query, [1, 1, hidden].
    probe: Tensor,
    /// The maps of query, key and value of `torch.nn.MultiheadAttention`, which the file stores as one
    /// matrix.
    inputs: [Linear; 3],
    projection: Linear,
    norm: LayerNorm,
    mlp: Mlp,
    heads: i64,
}

impl PoolingHead {
    fn load(weights: &mut WeightLoader, name: &str, sizes: &Sizes) -> Self {
        let hidden = sizes.hidden;
        let weight = weights.tensor(&format!("{name}.attention.in_proj_weight"), &[3 * hidden, hidden]);
        let bias = weights.tensor(&format!("{name}.attention.in_proj_bias"), &[3 * hidden]);
        let third = |x: &Tensor, index: i64| {
            // A faulty tensor is empty; the loader's `finish` reports it.
            if x.numel() == 0 { x.shallow_clone() } else { x.narrow(0, index * hidden, hidden) }
        };
        Self {
            probe: weights.tensor(&format!("{name}.probe"), &[1, 1, hidden]),
            inputs: [0, 1, 2]
                .map(|index| Linear::from_tensors(third(&weight, index), Some(third(&bias, index)))),
            projection: Linear::load(weights, &format!("{name}.attention.out_proj"), hidden, hidden, true),
            norm: LayerNorm::load(weights, &format!("{name}.layernorm"), hidden, sizes.eps),
            mlp: sizes.mlp(weights, &format!("{name}.mlp.fc1"), &format!("{name}.mlp.fc2")),
            heads: sizes.heads,
        }
    }

    fn forward(&self, output: &Tensor, attention_mask: Option<&Tensor>) -> Tensor {
        let probe = self.probe.expand([output.size()[0], -1, -1], false);
        let [query, key, value] = [(0, &probe), (1, output), (2, output)]
            .map(|(index, x)| split_heads(&self.inputs[index].forward(x), self.heads));
        let pooled = self.projection.forward(&attention(&query, &key, &value, attention_mask));
        let added = self.mlp.forward(&self.norm.forward(&pooled));
        (pooled + added).select(1, 0)
    }
}
