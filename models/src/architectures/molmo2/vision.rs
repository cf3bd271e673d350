//! The image tower: a SigLIP-like transformer over the patches of each crop, without a class token or a final
//! norm.

use tch::Tensor;

use super::config::Config;
use crate::nn::encoder::{Encoder, EncoderInputs, Names};
use crate::nn::layers::Linear;
use crate::snapshot::weights::WeightLoader;

const NAMES: Names = Names {
    layers: "transformer.resblocks",
    norm1: "attention_norm",
    query: "attention.wq",
    key: "attention.wk",
    value: "attention.wv",
    output: "attention.wo",
    norm2: "ffn_norm",
    up: "feed_forward.w1",
    down: "feed_forward.w2",
};

/// The image tower: patch embedding, positions and an encoder.
#[derive(Debug)]
pub(super) struct VisionTower {
    patches: Linear,
    /// The position table, [patches, hidden].
    positions: Tensor,
    encoder: Encoder,
    /// The indices of the hidden states that are concatenated.
    features: Vec<usize>,
}

impl VisionTower {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, config: &Config) -> Self {
        let vision = &config.vision_config;
        let values = vision.patch_size * vision.patch_size * 3;
        Self {
            patches: Linear::load(
                weights,
                &format!("{name}.patch_embedding"),
                values,
                vision.hidden_size,
                true,
            ),
            positions: weights.tensor(
                &format!("{name}.positional_embedding"),
                &[vision.num_position_embeddings, vision.hidden_size],
            ),
            encoder: Encoder::load(weights, name, &NAMES, &config.vision_sizes()),
            features: config.feature_states(),
        }
    }

    /// Embeds patches [crops, patches, patch·patch·3] as [crops, patches, hidden].
    fn embed(&self, patches: &Tensor) -> Tensor {
        self.patches.forward(&patches.to_kind(self.positions.kind())) + &self.positions
    }

    /// Returns the embeddings and each layer's output, all [crops, patches, hidden].
    pub(super) fn hidden_states(&self, patches: &Tensor) -> Vec<Tensor> {
        self.encoder.hidden_states(self.embed(patches), EncoderInputs::default())
    }

    /// Returns the layers that the adapter reads side by side, [crops, patches, layers · hidden].
    pub(super) fn features(&self, patches: &Tensor) -> Tensor {
        Tensor::cat(&self.encoder.some_hidden_states(self.embed(patches), &self.features), -1)
    }
}
