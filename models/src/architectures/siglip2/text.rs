//! The text tower, which turns prompts into embeddings.

use serde::Deserialize;
use tch::{Device, Tensor};

use super::NAMES;
use crate::ModelError;
use crate::nn::encoder::{Encoder, EncoderInputs, Sizes};
use crate::nn::layers::{Activation, Linear};
use crate::nn::norm::LayerNorm;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::limits::{VOCABULARY_MAX, WIDTH_MAX, in_range};
use crate::snapshot::tokenizer::PaddingTokenizer;
use crate::snapshot::weights::WeightLoader;

/// The section `text_config`; the defaults are those of transformers' `SiglipTextConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct TextConfig {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    max_position_embeddings: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    /// The width of the shared embedding space; `hidden_size` where it is absent.
    projection_size: Option<i64>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 64,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            projection_size: None,
        }
    }
}

impl TextConfig {
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
        let in_text = |fault| format!("text_config: {fault}");
        in_range("vocab_size", self.vocab_size, 1..=VOCABULARY_MAX).map_err(in_text)?;
        in_range("max_position_embeddings", self.max_position_embeddings, 2..=WIDTH_MAX).map_err(in_text)?;
        in_range("projection_size", self.projection_size.unwrap_or(1), 1..=WIDTH_MAX).map_err(in_text)?;
        self.sizes().check().map_err(in_text)
    }
}

/// Lower-cases a text character by character, as the `Lowercase` normaliser does: `str::to_lowercase` looks
/// at a sigma's neighbours.
fn lowercase(text: &str) -> String {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// A transformer over prompts, whose last position is the embedding.
#[derive(Debug)]
pub(super) struct TextTower {
    tokenizer: PaddingTokenizer,
    lowercase: bool,
    /// The token embeddings, [vocabulary, hidden].
    tokens: Tensor,
    /// The position embeddings, [positions, hidden].
    positions: Tensor,
    encoder: Encoder,
    norm: LayerNorm,
    head: Linear,
}

impl TextTower {
    pub(super) fn load(
        weights: &mut WeightLoader,
        snapshot: &Snapshot,
        config: &TextConfig,
        lowercase: bool,
    ) -> Result<Self, ModelError> {
        let tokenizer =
            PaddingTokenizer::load(snapshot, usize::try_from(config.max_position_embeddings).unwrap_or(2))?;
        if tokenizer.largest_id() >= config.vocab_size {
            let message = format!(
                "has the id {}, the text tower ids under {}",
                tokenizer.largest_id(),
                config.vocab_size
            );
            return Err(ModelError::malformed(&snapshot.path("tokenizer.json"), message));
        }
        let (sizes, hidden) = (config.sizes(), config.hidden_size);
        let projection = config.projection_size.unwrap_or(hidden);
        Ok(Self {
            tokenizer,
            lowercase,
            tokens: weights
                .tensor("text_model.embeddings.token_embedding.weight", &[config.vocab_size, hidden]),
            positions: weights.tensor(
                "text_model.embeddings.position_embedding.weight",
                &[config.max_position_embeddings, hidden],
            ),
            encoder: Encoder::load(weights, "text_model.encoder", &NAMES, &sizes),
            norm: LayerNorm::load(weights, "text_model.final_layer_norm", hidden, config.layer_norm_eps),
            head: Linear::load(weights, "text_model.head", hidden, projection, true),
        })
    }

    /// Returns the ids of texts, [texts, positions]. `Siglip2Tokenizer` lower-cases; the published
    /// `tokenizer.json` does not.
    pub(super) fn tokenize(&self, texts: &[String], device: Device) -> Result<Tensor, ModelError> {
        let mut ids = Vec::new();
        for text in texts {
            let encoded = if self.lowercase {
                self.tokenizer.encode(&lowercase(text))
            } else {
                self.tokenizer.encode(text)
            };
            ids.extend(encoded?);
        }
        let count = i64::try_from(texts.len()).unwrap_or(0);
        Ok(Tensor::f_from_slice(&ids)?.f_view([count, -1])?.f_to_device(device)?)
    }

    /// Returns the embeddings and each layer's output for ids [texts, positions], all
    /// [texts, positions, hidden]. There is no mask: the tower was trained to attend to padding too.
    pub(super) fn hidden_states(&self, ids: &Tensor) -> Vec<Tensor> {
        let positions = self.positions.narrow(0, 0, ids.size()[1]);
        let embeddings = Tensor::embedding(&self.tokens, ids, -1, false, false) + positions;
        self.encoder.hidden_states(embeddings, EncoderInputs::default())
    }

    /// Returns the last hidden state after the final norm, [texts, positions, hidden].
    pub(super) fn output(&self, hidden_states: &[Tensor]) -> Tensor {
        self.norm.forward(&hidden_states[hidden_states.len() - 1])
    }

    /// Returns the embeddings of texts, [texts, projection]: the last position, padding or not, through the
    /// head.
    pub(super) fn pool(&self, output: &Tensor) -> Tensor {
        self.head.forward(&output.select(1, -1))
    }
}
