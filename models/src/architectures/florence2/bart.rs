//! The text model, BART: an encoder over image and prompt, and a decoder that generates text.
//!
//! The source is Lewis et al., "BART", 2019 (arXiv 1910.13461); numerics follow transformers'
//! `modeling_bart.py`: norms after the residuals, learned positions.

use tch::{Device, Kind, Tensor};

use super::blocks::{DecoderLayer, EncoderLayer};
use super::config::{EPS, TextConfig};
use crate::generation::static_cache::DecoderSizes;
use crate::nn::kv_cache::{GrowingKvCache, KvCache};
use crate::nn::layers::Linear;
use crate::nn::norm::LayerNorm;
use crate::snapshot::weights::WeightLoader;

/// The row of the first position in the position tables: BART leaves those before it to padding.
const POSITION_OFFSET: i64 = 2;
const NAME: &str = "model.language_model";
/// The names that files may give the token table, which may be tied to others and stored once.
const TOKEN_TABLES: [&str; 4] = [
    "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
];

/// The text model: token table, encoder, decoder and output layer.
#[derive(Debug)]
pub(super) struct Bart {
    /// The token table, [vocabulary, width].
    tokens: Tensor,
    /// The factor of the token embeddings, if the configuration scales them.
    scale: Option<f64>,
    encoder_embedding: Positions,
    encoder: Vec<EncoderLayer>,
    decoder_embedding: Positions,
    decoder: Vec<DecoderLayer>,
    /// The output layer; its weight is the token table where the two are tied.
    head: Linear,
    decoder_heads: i64,
}

/// The memory that the decoder attends to: keys and values [sources, heads, positions, head width] for each
/// layer, computed once.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) layers: Vec<(Tensor, Tensor)>,
    /// The bias of the attention logits where the sources are padded, [1, 1, 1, positions].
    pub(super) bias: Option<Tensor>,
}

impl Bart {
    pub(super) fn load(weights: &mut WeightLoader, config: &TextConfig, tied: bool) -> Self {
        let (vocabulary, width) = (config.vocab_size, config.d_model);
        let table = TOKEN_TABLES.into_iter().find(|name| weights.has(name)).unwrap_or(TOKEN_TABLES[0]);
        let tokens = weights.tensor(table, &[vocabulary, width]);
        let head = if tied {
            tokens.shallow_clone()
        } else {
            weights.tensor("lm_head.weight", &[vocabulary, width])
        };
        let bias = weights
            .has("final_logits_bias")
            .then(|| weights.tensor("final_logits_bias", &[1, vocabulary]).view([-1]));
        Self {
            tokens,
            scale: config.scale_embedding.then(|| (width as f64).sqrt()),
            encoder_embedding: Positions::load(weights, "encoder", config),
            encoder: (0..config.encoder_layers)
                .map(|index| EncoderLayer::load(weights, &format!("{NAME}.encoder.layers.{index}"), config))
                .collect(),
            decoder_embedding: Positions::load(weights, "decoder", config),
            decoder: (0..config.decoder_layers)
                .map(|index| DecoderLayer::load(weights, &format!("{NAME}.decoder.layers.{index}"), config))
                .collect(),
            head: Linear::from_tensors(head, bias),
            decoder_heads: config.decoder_attention_heads,
        }
    }

    pub(super) fn device(&self) -> Device {
        self.tokens.device()
    }

    pub(super) fn kind(&self) -> Kind {
        self.tokens.kind()
    }

    /// Returns the size of the vocabulary.
    pub(super) fn vocabulary(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Embeds ids [rows, count] as [rows, count, width], without positions.
    pub(super) fn embed(&self, ids: &Tensor) -> Tensor {
        let embedded = Tensor::embedding(&self.tokens, ids, -1, false, false);
        match self.scale {
            Some(scale) => embedded * scale,
            None => embedded,
        }
    }

    /// Runs the encoder on embeddings [rows, count, width] and returns the embeddings with positions and each
    /// layer's output, of the same shape. `bias` is added to the attention logits where the rows are padded,
    /// [1, 1, 1, count].
    pub(super) fn encode(&self, embedded: &Tensor, bias: Option<&Tensor>) -> Vec<Tensor> {
        let mut states = vec![self.encoder_embedding.forward(embedded, 0)];
        for layer in &self.encoder {
            states.push(layer.forward(&states[states.len() - 1], bias));
        }
        states
    }

    /// Computes the decoder's keys and values from the encoder's last state, [sources, positions, width], and
    /// its bias.
    pub(super) fn memory(&self, encoded: &Tensor, bias: Option<&Tensor>) -> Memory {
        Memory {
            layers: self.decoder.iter().map(|layer| layer.keys_values(encoded)).collect(),
            bias: bias.map(Tensor::shallow_clone),
        }
    }

    /// Decodes new tokens [rows, count] after those in the cache, and returns the embeddings and each layer's
    /// output, [rows, count, width]. The rows of the first source come first, then as many of the second, and
    /// so on.
    pub(super) fn decode(&self, tokens: &Tensor, memory: &Memory, cache: &mut GrowingKvCache) -> Vec<Tensor> {
        let (past, count) = (cache.positions(), tokens.size()[1]);
        // A single new token may attend to everything, so it needs no mask.
        let allowed = (count > 1)
            .then(|| Tensor::ones([count, past + count], (Kind::Bool, tokens.device())).tril(past));
        let embedded = self.decoder_embedding.forward(&self.embed(tokens), past);
        self.decode_embedded(embedded, memory, allowed.as_ref(), cache)
    }

    /// Decodes one token [rows, 1] at the position with this number, \[1\], and returns the last state,
    /// [rows, width]. `bias` is added to the attention logits of the keys that `cache` returns.
    pub(super) fn decode_at(
        &self,
        position: &Tensor,
        token: &Tensor,
        memory: &Memory,
        bias: &Tensor,
        cache: &mut dyn KvCache,
    ) -> Tensor {
        let embedded = self.decoder_embedding.forward_at(&self.embed(token), position);
        let states = self.decode_embedded(embedded, memory, Some(bias), cache);
        states[states.len() - 1].squeeze_dim(1)
    }

    fn decode_embedded(
        &self,
        embedded: Tensor,
        memory: &Memory,
        bias: Option<&Tensor>,
        cache: &mut dyn KvCache,
    ) -> Vec<Tensor> {
        let mut states = vec![embedded];
        for (index, (layer, source)) in self.decoder.iter().zip(&memory.layers).enumerate() {
            let biases = [bias, memory.bias.as_ref()];
            states.push(layer.forward(&states[states.len() - 1], source, biases, (cache, index)));
        }
        states
    }

    /// Returns the sizes of the decoder.
    pub(super) fn sizes(&self) -> DecoderSizes {
        DecoderSizes {
            layers: self.decoder.len(),
            heads: self.decoder_heads,
            head_width: self.tokens.size()[1] / self.decoder_heads,
            vocabulary: self.vocabulary(),
            kind: self.kind(),
            device: self.device(),
        }
    }

    /// Returns an empty cache for [`Bart::decode`].
    pub(super) fn cache(&self) -> GrowingKvCache {
        GrowingKvCache::new(self.decoder.len())
    }

    /// Returns the logits [.., vocabulary] of decoded states [.., width].
    pub(super) fn logits(&self, decoded: &Tensor) -> Tensor {
        self.head.forward(decoded)
    }
}

/// The learned positions, and the norm of the embeddings.
#[derive(Debug)]
struct Positions {
    /// The position table, [2 + positions, width].
    table: Tensor,
    norm: LayerNorm,
}

impl Positions {
    fn load(weights: &mut WeightLoader, part: &str, config: &TextConfig) -> Self {
        let rows = config.max_position_embeddings + POSITION_OFFSET;
        Self {
            table: weights.tensor(&format!("{NAME}.{part}.embed_positions.weight"), &[rows, config.d_model]),
            norm: LayerNorm::load(
                weights,
                &format!("{NAME}.{part}.layernorm_embedding"),
                config.d_model,
                EPS,
            ),
        }
    }

    /// Adds positions to embeddings [rows, count, width] that come after `past` others, and normalises them.
    fn forward(&self, embedded: &Tensor, past: i64) -> Tensor {
        let positions = self.table.narrow(0, past + POSITION_OFFSET, embedded.size()[1]);
        self.norm.forward(&(embedded + positions))
    }

    /// Adds the position with this number, \[1\], to embeddings [rows, 1, width], and normalises them.
    fn forward_at(&self, embedded: &Tensor, position: &Tensor) -> Tensor {
        self.norm.forward(&(embedded + self.table.index_select(0, &(position + POSITION_OFFSET))))
    }
}
