//! The text model, BART: an encoder over image and prompt, and a decoder that writes.
//!
//! Lewis et al., "BART", 2019 (arXiv 1910.13461); numerics as in transformers' `modeling_bart.py`: norms after the
//! residuals, learned positions.

use tch::{Device, Kind, Tensor};

use super::config::{EPS, TextConfig};
use crate::decoder::{Decoder, KvCache};
use crate::layers::{Activation, LayerNorm, Linear, attention, split_heads};
use crate::weights::WeightLoader;

/// BART leaves the first rows of its position tables to padding.
const POSITION_OFFSET: i64 = 2;
const NAME: &str = "model.language_model";
/// The token table, by any of the names under which files that tie it to others may keep it.
const TOKEN_TABLES: [&str; 4] = [
    "model.language_model.shared.weight",
    "model.language_model.encoder.embed_tokens.weight",
    "model.language_model.decoder.embed_tokens.weight",
    "lm_head.weight",
];

#[derive(Debug)]
pub(super) struct Bart {
    /// [vocabulary, width].
    tokens: Tensor,
    /// What token embeddings are multiplied by, where they are.
    scale: Option<f64>,
    encoder_embedding: Positions,
    encoder: Vec<EncoderLayer>,
    decoder_embedding: Positions,
    decoder: Vec<DecoderLayer>,
    /// The token table again, where they are tied.
    head: Linear,
}

/// What the decoder looks at: keys and values [sources, heads, positions, head width] in each layer, computed once.
#[derive(Debug)]
pub(super) struct Memory {
    layers: Vec<(Tensor, Tensor)>,
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
        }
    }

    pub(super) fn device(&self) -> Device {
        self.tokens.device()
    }

    pub(super) fn kind(&self) -> Kind {
        self.tokens.kind()
    }

    /// How many tokens there are.
    pub(super) fn vocabulary(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// [rows, count] → [rows, count, width], without positions.
    pub(super) fn embed(&self, ids: &Tensor) -> Tensor {
        let embedded = Tensor::embedding(&self.tokens, ids, -1, false, false);
        match self.scale {
            Some(scale) => embedded * scale,
            None => embedded,
        }
    }

    /// [rows, count, width] → the embeddings with positions and each layer's output, of the same shape.
    pub(super) fn encode(&self, embedded: &Tensor) -> Vec<Tensor> {
        let mut states = vec![self.encoder_embedding.forward(embedded, 0)];
        for layer in &self.encoder {
            states.push(layer.forward(&states[states.len() - 1]));
        }
        states
    }

    /// What the decoder needs of the encoder's last state, [sources, positions, width].
    pub(super) fn memory(&self, encoded: &Tensor) -> Memory {
        Memory {
            layers: self.decoder.iter().map(|layer| layer.cross_attention.keys_values(encoded)).collect(),
        }
    }

    /// New tokens [rows, count] after those in the cache → the embeddings and each layer's output,
    /// [rows, count, width]. The rows are those of the first source, as many of the second, and so on.
    pub(super) fn decode(&self, tokens: &Tensor, memory: &Memory, cache: &mut KvCache) -> Vec<Tensor> {
        let (past, count) = (cache.positions(), tokens.size()[1]);
        // One new token may look at everything.
        let allowed = (count > 1)
            .then(|| Tensor::ones([count, past + count], (Kind::Bool, tokens.device())).tril(past));
        let mut states = vec![self.decoder_embedding.forward(&self.embed(tokens), past)];
        for (index, (layer, source)) in self.decoder.iter().zip(&memory.layers).enumerate() {
            let x = &states[states.len() - 1];
            states.push(
                layer.forward(x, source, allowed.as_ref(), |keys, values| cache.append(index, keys, values)),
            );
        }
        states
    }

    /// A cache for [`Bart::decode`] that holds nothing yet.
    pub(super) fn cache(&self) -> KvCache {
        KvCache::new(self.decoder.len())
    }

    /// [.., width] → [.., vocabulary].
    pub(super) fn logits(&self, decoded: &Tensor) -> Tensor {
        self.head.forward(decoded)
    }
}

/// A decoder in the middle of its texts.
#[derive(Debug)]
pub(super) struct Writer<'a> {
    bart: &'a Bart,
    memory: Memory,
    cache: KvCache,
}

impl<'a> Writer<'a> {
    pub(super) fn new(bart: &'a Bart, memory: Memory) -> Self {
        Self { bart, memory, cache: bart.cache() }
    }
}

impl Decoder for Writer<'_> {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        let states = self.bart.decode(tokens, &self.memory, &mut self.cache);
        let last = states[states.len() - 1].select(1, -1);
        self.bart.logits(&last).to_kind(Kind::Float)
    }

    fn select(&mut self, rows: &Tensor) {
        self.cache.select(rows);
        self.memory.select(rows);
    }
}

impl Memory {
    /// Keeps these rows' sources. A single source is that of every row.
    fn select(&mut self, rows: &Tensor) {
        for (keys, values) in &mut self.layers {
            if keys.size()[0] > 1 {
                *keys = keys.index_select(0, rows);
                *values = values.index_select(0, rows);
            }
        }
    }
}

/// Learned positions and the norm of the embeddings.
#[derive(Debug)]
struct Positions {
    /// [2 + positions, width].
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

    /// Embeddings [rows, count, width] that come after `past` others.
    fn forward(&self, embedded: &Tensor, past: i64) -> Tensor {
        let positions = self.table.narrow(0, past + POSITION_OFFSET, embedded.size()[1]);
        self.norm.forward(&(embedded + positions))
    }
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    projection: Linear,
    heads: i64,
}

impl Attention {
    fn load(weights: &mut WeightLoader, name: &str, width: i64, heads: i64) -> Self {
        let mut linear = |part: &str| Linear::load(weights, &format!("{name}.{part}"), width, width, true);
        Self {
            query: linear("q_proj"),
            key: linear("k_proj"),
            value: linear("v_proj"),
            projection: linear("out_proj"),
            heads,
        }
    }

    /// Of [rows, positions, width], each [rows, heads, positions, head width].
    fn keys_values(&self, x: &Tensor) -> (Tensor, Tensor) {
        (split_heads(&self.key.forward(x), self.heads), split_heads(&self.value.forward(x), self.heads))
    }

    fn forward(&self, x: &Tensor, keys: &Tensor, values: &Tensor, allowed: Option<&Tensor>) -> Tensor {
        let query = split_heads(&self.query.forward(x), self.heads);
        self.projection.forward(&attention(&query, keys, values, allowed))
    }

    /// The rows of one source ask together, as if they were one long row: no key or value is repeated.
    fn across(&self, x: &Tensor, (keys, values): &(Tensor, Tensor)) -> Tensor {
        let size = x.size();
        let together = x.reshape([keys.size()[0], -1, size[2]]);
        self.forward(&together, keys, values, None).view(size.as_slice())
    }
}

/// norm(x + fc2(act(fc1(x)))).
#[derive(Debug)]
struct FeedForward {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
    norm: LayerNorm,
}

impl FeedForward {
    fn load(weights: &mut WeightLoader, name: &str, config: &TextConfig, inner: i64) -> Self {
        let width = config.d_model;
        Self {
            fc1: Linear::load(weights, &format!("{name}.fc1"), width, inner, true),
            fc2: Linear::load(weights, &format!("{name}.fc2"), inner, width, true),
            activation: config.activation_function,
            norm: LayerNorm::load(weights, &format!("{name}.final_layer_norm"), width, EPS),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let added = self.fc2.forward(&self.activation.forward(&self.fc1.forward(x)));
        self.norm.forward(&(x + added))
    }
}

#[derive(Debug)]
struct EncoderLayer {
    attention: Attention,
    norm: LayerNorm,
    feed_forward: FeedForward,
}

impl EncoderLayer {
    fn load(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> Self {
        let (width, heads) = (config.d_model, config.encoder_attention_heads);
        Self {
            attention: Attention::load(weights, &format!("{name}.self_attn"), width, heads),
            norm: LayerNorm::load(weights, &format!("{name}.self_attn_layer_norm"), width, EPS),
            feed_forward: FeedForward::load(weights, name, config, config.encoder_ffn_dim),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let (keys, values) = self.attention.keys_values(x);
        let attended = self.attention.forward(x, &keys, &values, None);
        self.feed_forward.forward(&self.norm.forward(&(x + attended)))
    }
}

#[derive(Debug)]
struct DecoderLayer {
    attention: Attention,
    norm: LayerNorm,
    cross_attention: Attention,
    cross_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl DecoderLayer {
    fn load(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> Self {
        let (width, heads) = (config.d_model, config.decoder_attention_heads);
        let mut attention = |part: &str| Attention::load(weights, &format!("{name}.{part}"), width, heads);
        Self {
            attention: attention("self_attn"),
            cross_attention: attention("encoder_attn"),
            norm: LayerNorm::load(weights, &format!("{name}.self_attn_layer_norm"), width, EPS),
            cross_norm: LayerNorm::load(weights, &format!("{name}.encoder_attn_layer_norm"), width, EPS),
            feed_forward: FeedForward::load(weights, name, config, config.decoder_ffn_dim),
        }
    }

    /// `keep` puts the new keys and values into a cache, and gives all that are there then.
    fn forward(
        &self,
        x: &Tensor,
        source: &(Tensor, Tensor),
        allowed: Option<&Tensor>,
        keep: impl FnOnce(Tensor, Tensor) -> (Tensor, Tensor),
    ) -> Tensor {
        let (keys, values) = self.attention.keys_values(x);
        let (keys, values) = keep(keys, values);
        let x = self.norm.forward(&(x + self.attention.forward(x, &keys, &values, allowed)));
        let x = self.cross_norm.forward(&(&x + self.cross_attention.across(&x, source)));
        self.feed_forward.forward(&x)
    }
}
