//! The layers of BART, with the norms after the residuals.

use tch::Tensor;

use super::config::{EPS, TextConfig};
use crate::nn::kv_cache::KvCache;
use crate::nn::layers::{Activation, Linear, attention, split_heads};
use crate::nn::norm::LayerNorm;
use crate::snapshot::weights::WeightLoader;

/// Loads the maps of queries, keys, values and the attention's output, as snapshots store them.
fn load_maps(weights: &mut WeightLoader, name: &str, width: i64) -> [Linear; 4] {
    ["q_proj", "k_proj", "v_proj", "out_proj"]
        .map(|part| Linear::load(weights, &format!("{name}.{part}"), width, width, true))
}

/// Multi-head attention of a sequence to itself.
#[derive(Debug)]
struct SelfAttention {
    /// The maps of queries, keys and values, concatenated.
    projection: Linear,
    output: Linear,
    heads: i64,
}

impl SelfAttention {
    fn load(weights: &mut WeightLoader, name: &str, width: i64, heads: i64) -> Self {
        let [query, key, value, output] = load_maps(weights, name, width);
        Self { projection: Linear::concatenated(&[query, key, value]), output, heads }
    }

    /// Computes the attention of `x`, [rows, count, width]. `keep` takes the new keys and values, and returns
    /// those to attend to. `bias` is added to the attention logits and broadcasts to
    /// [rows, heads, count, keys].
    fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        keep: impl FnOnce(Tensor, Tensor) -> (Tensor, Tensor),
    ) -> Tensor {
        let parts = self.projection.forward(x).chunk(3, -1);
        let [query, keys, values] = [0, 1, 2].map(|part| split_heads(&parts[part], self.heads));
        let (keys, values) = keep(keys, values);
        self.output.forward(&attention(&query, &keys, &values, bias))
    }
}

/// Multi-head attention of a text to its source, whose keys and values are computed once.
#[derive(Debug)]
struct CrossAttention {
    query: Linear,
    keys_values: Linear,
    output: Linear,
    heads: i64,
}

impl CrossAttention {
    fn load(weights: &mut WeightLoader, name: &str, width: i64, heads: i64) -> Self {
        let [query, key, value, output] = load_maps(weights, name, width);
        Self { query, keys_values: Linear::concatenated(&[key, value]), output, heads }
    }

    /// Attends from `x` [rows, count, width] to a source. The rows of one source are queried together, as if
    /// they were one long row, so that no key or value is repeated.
    fn forward(&self, x: &Tensor, (keys, values): &(Tensor, Tensor), bias: Option<&Tensor>) -> Tensor {
        let size = x.size();
        let together = x.reshape([keys.size()[0], -1, size[2]]);
        let query = split_heads(&self.query.forward(&together), self.heads);
        self.output.forward(&attention(&query, keys, values, bias)).view(size.as_slice())
    }
}

/// The feed-forward block: norm(x + fc2(act(fc1(x)))).
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

/// A layer of the encoder: self-attention and a feed-forward block.
#[derive(Debug)]
pub(super) struct EncoderLayer {
    attention: SelfAttention,
    norm: LayerNorm,
    feed_forward: FeedForward,
}

impl EncoderLayer {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> Self {
        let (width, heads) = (config.d_model, config.encoder_attention_heads);
        Self {
            attention: SelfAttention::load(weights, &format!("{name}.self_attn"), width, heads),
            norm: LayerNorm::load(weights, &format!("{name}.self_attn_layer_norm"), width, EPS),
            feed_forward: FeedForward::load(weights, name, config, config.encoder_ffn_dim),
        }
    }

    /// Computes the output for `x`, [rows, count, width]; `bias` is added to the attention logits.
    pub(super) fn forward(&self, x: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let attended = self.attention.forward(x, bias, |keys, values| (keys, values));
        self.feed_forward.forward(&self.norm.forward(&(x + attended)))
    }
}

/// A layer of the decoder: self-attention, cross-attention and a feed-forward block.
#[derive(Debug)]
pub(super) struct DecoderLayer {
    attention: SelfAttention,
    norm: LayerNorm,
    cross_attention: CrossAttention,
    cross_norm: LayerNorm,
    feed_forward: FeedForward,
}

impl DecoderLayer {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> Self {
        let (width, heads) = (config.d_model, config.decoder_attention_heads);
        Self {
            attention: SelfAttention::load(weights, &format!("{name}.self_attn"), width, heads),
            cross_attention: CrossAttention::load(weights, &format!("{name}.encoder_attn"), width, heads),
            norm: LayerNorm::load(weights, &format!("{name}.self_attn_layer_norm"), width, EPS),
            cross_norm: LayerNorm::load(weights, &format!("{name}.encoder_attn_layer_norm"), width, EPS),
            feed_forward: FeedForward::load(weights, name, config, config.decoder_ffn_dim),
        }
    }

    /// Computes the keys and values of a source [rows, positions, width], each
    /// [rows, heads, positions, head width].
    pub(super) fn keys_values(&self, source: &Tensor) -> (Tensor, Tensor) {
        let parts = self.cross_attention.keys_values.forward(source).chunk(2, -1);
        let split = |part: usize| split_heads(&parts[part], self.cross_attention.heads);
        (split(0), split(1))
    }

    /// Computes the output for new positions `x`, [rows, count, width]. The biases are added to the attention
    /// logits of the text so far, and to those of the source.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        source: &(Tensor, Tensor),
        [bias, source_bias]: [Option<&Tensor>; 2],
        (cache, layer): (&mut dyn KvCache, usize),
    ) -> Tensor {
        let attended = self.attention.forward(x, bias, |keys, values| cache.append(layer, keys, values));
        let x = self.norm.forward(&(x + attended));
        let x = self.cross_norm.forward(&(&x + self.cross_attention.forward(&x, source, source_bias)));
        self.feed_forward.forward(&x)
    }
}
