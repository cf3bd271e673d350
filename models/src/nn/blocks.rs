//! Building blocks that transformers of several architectures share, one level above single layers: gated
//! MLPs and the attention of autoregressive decoders.

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::kernels::{Gelu, Prologue, RmsNorm, norm_rotate, rotate, silu_gated};
use crate::nn::attention::scaled_dot_product;
use crate::nn::kv_cache::KvCache;
use crate::nn::layers::{Activation, attention, split_heads};
use crate::nn::quantized_linear::{Activations, QuantLinear};

/// An MLP: down(act(up(x))), or down(act(gate(x)) · up(x)) with a gate.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) gate: Option<QuantLinear>,
    pub(crate) up: QuantLinear,
    pub(crate) down: QuantLinear,
    pub(crate) activation: Activation,
}

impl Mlp {
    /// Computes the MLP for `x` [.., inputs].
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_rows(&self.up.rows(x.shallow_clone(), Prologue::Nothing))
    }

    /// Does the same as [`Self::forward`] for activations that were prepared for `up`.
    pub(crate) fn forward_rows(&self, x: &Activations) -> Tensor {
        self.down.forward(&self.inner_rows(x))
    }

    /// Computes the activations that `down` takes, from activations that were prepared for `up`.
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

/// A gated MLP, down(act(gate(x)) · up(x)), with `up` and `gate` as one linear map.
#[derive(Debug)]
pub(crate) struct FusedMlp {
    /// The rows of `up`, followed by as many rows of `gate`.
    pub(crate) up_and_gate: QuantLinear,
    pub(crate) down: QuantLinear,
    pub(crate) activation: Activation,
}

impl FusedMlp {
    /// Computes the MLP for activations that were prepared for `up_and_gate`.
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

/// The dimensions that the norms of queries and keys run over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum QkNorm {
    /// Each head is normalized on its own.
    #[serde(rename = "qwen3")]
    Head,
    /// The whole projection is normalized at once.
    #[serde(rename = "olmo")]
    Projection,
}

/// The self-attention of a decoder: fewer heads of keys and values than of queries (grouped-query attention,
/// Ainslie et al., arXiv 2305.13245), norms of queries and keys, rotary positions, and a KV cache.
#[derive(Debug)]
pub(crate) struct GroupedAttention {
    /// The projection to queries, keys and values: [(heads + 2 · key heads) · head width, hidden].
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
    /// Computes the attention of new positions.
    ///
    /// `x` are activations [rows, count, hidden] that were prepared for `projection`; `rope` is the cosine
    /// and sine of the positions, [count, head width] each. `bias` is added to the attention logits and
    /// broadcasts to [rows, 1, count, keys], where the keys are those that the cache `kept` returns; a single
    /// position that may look at all of them needs none. If `only` is given, a position \[1\], just that
    /// position's output is computed.
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

    /// Returns queries or keys normalized, split into heads and rotated: [rows, heads, count, head width].
    fn positioned(&self, x: &Tensor, norm: &RmsNorm, heads: i64, (cos, sin): &(Tensor, Tensor)) -> Tensor {
        let normed = norm.forward(x);
        rotate(&normed, heads, (cos, sin));
        split_heads(&normed, heads)
    }

    /// Computes attention, [rows, count, heads · head width]. The heads that share keys and values are laid
    /// one after the other as if they were more positions, so that keys and values need not be copied for
    /// each of them.
    fn attend(&self, query: &Tensor, key: &Tensor, value: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let size = query.size();
        let (rows, count, group) = (size[0], size[2], self.heads / self.key_heads);
        if group == 1 {
            return attention(query, key, value, bias);
        }
        // cuDNN and flash attention share heads themselves, which libtorch supports in half precision only.
        if query.device().is_cuda() && query.kind() != Kind::Float {
            return scaled_dot_product(query, key, value, bias, true).transpose(1, 2).flatten(2, 3);
        }
        let folded = query.reshape([rows, self.key_heads, group * count, self.head_width]);
        // The bias of a single position broadcasts.
        let bias =
            bias.map(|bias| if count == 1 { bias.shallow_clone() } else { bias.repeat([1, 1, group, 1]) });
        let attended = attention(&folded, key, value, bias.as_ref());
        // `attention` returns [rows, group · count, key heads · head width].
        attended
            .view([rows, group, count, self.key_heads, self.head_width])
            .permute([0, 2, 3, 1, 4])
            .reshape([rows, count, self.heads * self.head_width])
    }
}
