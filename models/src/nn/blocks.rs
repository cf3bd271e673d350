//! The parts that transformers of several architectures share, above the single layers: gated MLPs, and the
//! attention of autoregressive decoders.

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::kernels::{Gelu, Prologue, RmsNorm, norm_rotate, rotate, silu_gated};
use crate::nn::attention::scaled_dot_product;
use crate::nn::kv_cache::KvCache;
use crate::nn::layers::{Activation, attention, split_heads};
use crate::nn::quantized_linear::{Activations, QuantLinear};

/// down(act(up(x))), or with a gate down(act(gate(x)) · up(x)).
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Option<QuantLinear>,
    pub(crate) up: QuantLinear,
    pub(crate) down: QuantLinear,
    pub(crate) activation: Activation,
}

impl Mlp {
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_rows(&self.up.rows(x.shallow_clone(), Prologue::Nothing))
    }

    /// The same of rows that were made for `up`.
    pub(crate) fn forward_rows(&self, x: &Activations) -> Tensor {
        self.down.forward(&self.inner_rows(x))
    }

    /// What `down` is to be given for them.
    pub(crate) fn inner_rows(&self, x: &Activations) -> Activations {
        let inner = match (&self.gate, self.activation) {
            (None, Activation::Gelu) => return self.up.forward_gelu(x, Gelu::Exact, &self.down),
            (None, Activation::GeluTanh) => return self.up.forward_gelu(x, Gelu::Tanh, &self.down),
            (None, activation) => activation.forward(&self.up.forward(x)),
            (Some(gate), activation) => activation.forward(&gate.forward(x)) * self.up.forward(x),
        };
        self.down.rows(inner, Prologue::Nothing)
    }
}

/// down(act(gate(x)) · up(x)), with `up` and `gate` as one map.
#[derive(Debug)]
pub(crate) struct FusedMlp {
    /// First the rows of `up`, then as many of `gate`.
    pub(crate) up_and_gate: QuantLinear,
    pub(crate) down: QuantLinear,
    pub(crate) activation: Activation,
}

impl FusedMlp {
    /// Of rows that were made for `up_and_gate`.
    pub(crate) fn forward(&self, x: &Activations) -> Tensor {
        let both = self.up_and_gate.forward(x);
        let inner = if self.activation == Activation::Silu {
            silu_gated(&both)
        } else {
            let halves = both.chunk(2, -1);
            self.activation.forward(&halves[1]) * &halves[0]
        };
        self.down.forward(&self.down.rows(inner, Prologue::Nothing))
    }
}

/// What the norms of queries and keys run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum QkNorm {
    /// Each head on its own.
    #[serde(rename = "qwen3")]
    Head,
    /// The whole projection.
    #[serde(rename = "olmo")]
    Projection,
}

/// Self-attention of a decoder: fewer heads of keys and values than of queries, norms of queries and keys, rotary
/// positions, and keys and values that are kept.
#[derive(Debug)]
pub(crate) struct GroupedAttention {
    /// Queries, keys, values: [(heads + 2 · key heads) · head width, hidden].
    pub(crate) projection: QuantLinear,
    pub(crate) query_norm: RmsNorm,
    pub(crate) key_norm: RmsNorm,
    pub(crate) norm_over: QkNorm,
    pub(crate) output: QuantLinear,
    pub(crate) heads: i64,
    pub(crate) key_heads: i64,
    pub(crate) head_width: i64,
}

impl GroupedAttention {
    /// `x` are rows [rows, count, hidden] made for `projection`, `rope` cosine and sine of the positions, [count, head
    /// width] each. `bias` is added to the attention logits and broadcasts to [rows, 1, count, keys], the keys that
    /// `kept` gives; none is needed for one position that may look at all of them. Of `only`, where it is given, a
    /// position \[1\], comes what would come of all.
    pub(crate) fn forward(
        &self,
        x: &Activations,
        rope: &(Tensor, Tensor),
        bias: Option<&Tensor>,
        kept: Option<(&mut dyn KvCache, usize)>,
        only: Option<&Tensor>,
    ) -> Tensor {
        let (queries, keys) = (self.heads * self.head_width, self.key_heads * self.head_width);
        let projected = self.projection.forward(x);
        let part = |start, length, heads| split_heads(&projected.narrow(-1, start, length), heads);
        let (query, key) = match self.norm_over {
            QkNorm::Head => {
                let norms = [&self.query_norm, &self.key_norm];
                norm_rotate(&projected, [self.heads, self.key_heads], norms, (&rope.0, &rope.1));
                (part(0, queries, self.heads), part(queries, keys, self.key_heads))
            }
            QkNorm::Projection => (
                self.positioned(&projected.narrow(-1, 0, queries), &self.query_norm, self.heads, rope),
                self.positioned(&projected.narrow(-1, queries, keys), &self.key_norm, self.key_heads, rope),
            ),
        };
        let value = part(queries + keys, keys, self.key_heads);
        let (key, value) = match kept {
            Some((cache, layer)) => cache.append(layer, key, value),
            None => (key, value),
        };
        let attended = self.attend(&query, &key, &value, bias);
        let attended = only.map_or_else(|| attended.shallow_clone(), |only| attended.index_select(1, only));
        self.output.forward(&self.output.rows(attended, Prologue::Nothing))
    }

    /// Normalised, split into heads and rotated: [rows, heads, count, head width].
    fn positioned(&self, x: &Tensor, norm: &RmsNorm, heads: i64, (cos, sin): &(Tensor, Tensor)) -> Tensor {
        let normed = norm.forward(x);
        rotate(&normed, heads, (cos, sin));
        split_heads(&normed, heads)
    }

    /// [rows, count, heads · head width]. The heads that share keys and values are laid one after the other as if
    /// they were more positions, so that nothing is copied for each of them.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let size = query.size();
        let (rows, count, group) = (size[0], size[2], self.heads / self.key_heads);
        if group == 1 {
            return attention(query, key, value, bias);
        }
        // cuDNN and flash share them by themselves; libtorch has it for half precision.
        if query.device().is_cuda() && query.kind() != Kind::Float {
            return scaled_dot_product(query, key, value, bias, true).transpose(1, 2).flatten(2, 3);
        }
        let folded = query.reshape([rows, self.key_heads, group * count, self.head_width]);
        // That of one position broadcasts.
        let bias =
            bias.map(|bias| if count == 1 { bias.shallow_clone() } else { bias.repeat([1, 1, group, 1]) });
        let attended = attention(&folded, key, value, bias.as_ref());
        // `attention` gives [rows, group · count, key heads · head width].
        attended
            .view([rows, group, count, self.key_heads, self.head_width])
            .permute([0, 2, 3, 1, 4])
            .reshape([rows, count, self.heads * self.head_width])
    }
}
