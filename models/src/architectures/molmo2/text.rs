//! The text model: a Qwen3-like or OLMo-like decoder whose first positions hold images.

use tch::{Device, Kind, Tensor};

use super::config::TextConfig;
use crate::generation::static_cache::DecoderSizes;
use crate::kernels::{Norm, Prologue};
use crate::nn::blocks::{FusedMlp, GroupedAttention, QkNorm};
use crate::nn::kv_cache::KvCache;
use crate::nn::layers::Linear;
use crate::nn::norm::RmsNorm;
use crate::nn::quantized_linear::{Activations, QuantLinear};
use crate::nn::rotary::Rotary;
use crate::snapshot::weights::WeightLoader;

/// The decoder with its token table and output layer.
#[derive(Debug)]
pub(super) struct TextModel {
    /// The token table, [base vocabulary and added tokens, hidden].
    table: Tensor,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    /// The output layer, over the base vocabulary only: the added tokens are never generated.
    pub(super) head: Linear,
    rope: Rotary,
    /// The rotary embedding of the layers that scale it, if the configuration has a scaling.
    scaled_rope: Option<Rotary>,
    key_heads: i64,
    head_width: i64,
}

/// The cosine and sine of positions \[count\], [count, head width] each.
#[derive(Debug)]
pub(super) struct Angles {
    pub(super) plain: (Tensor, Tensor),
    pub(super) scaled: Option<(Tensor, Tensor)>,
}

impl Angles {
    /// Selects, from the angles of the positions 0, 1, 2, …, those at `positions`.
    pub(super) fn at(&self, positions: &Tensor) -> Self {
        let at =
            |(cos, sin): &(Tensor, Tensor)| (cos.index_select(0, positions), sin.index_select(0, positions));
        Self { plain: at(&self.plain), scaled: self.scaled.as_ref().map(at) }
    }
}

impl TextModel {
    pub(super) fn load(
        weights: &mut WeightLoader,
        config: &TextConfig,
        device: Device,
    ) -> Result<Self, String> {
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        let (theta, scaling) = config.rope()?;
        let table = |name: &str, rows, weights: &mut WeightLoader| {
            weights.tensor(&format!("model.transformer.wte.{name}"), &[rows, hidden])
        };
        let tables = [
            table("embedding", config.vocab_size, weights),
            table("new_embedding", config.additional_vocab_size, weights),
        ];
        Ok(Self {
            // A faulty table is on the CPU, which `finish` will report.
            table: Tensor::cat(&tables.map(|part| part.to_device(device)), 0),
            layers: (0..config.num_hidden_layers).map(|index| Layer::load(weights, index, config)).collect(),
            norm: RmsNorm::load(weights, "model.transformer.ln_f", hidden, eps),
            head: Linear::load(weights, "lm_head", hidden, config.vocab_size, false),
            rope: Rotary::new(config.head_dim, theta, None, device),
            scaled_rope: scaling.map(|scaling| Rotary::new(config.head_dim, theta, Some(scaling), device)),
            key_heads: config.num_key_value_heads,
            head_width: config.head_dim,
        })
    }

    /// Returns the sizes of the decoder.
    pub(super) fn sizes(&self) -> DecoderSizes {
        DecoderSizes {
            layers: self.layers.len(),
            heads: self.key_heads,
            head_width: self.head_width,
            vocabulary: self.head.outputs(),
            kind: self.table.kind(),
            device: self.device(),
        }
    }

    pub(super) fn device(&self) -> Device {
        self.table.device()
    }

    /// Embeds ids [rows, count] as [rows, count, hidden].
    pub(super) fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.table, ids, -1, false, false)
    }

    /// Returns the bias of the attention logits, [1, 1, count, keys], for a mask [count, keys] that is true
    /// where attention may look.
    pub(super) fn bias(&self, allowed: &Tensor) -> Tensor {
        let none = Tensor::zeros(allowed.size(), (self.table.kind(), self.device()));
        none.masked_fill(&allowed.to_device(self.device()).logical_not(), f64::NEG_INFINITY)
            .unsqueeze(0)
            .unsqueeze(0)
    }

    /// Returns the rotary angles of positions \[count\].
    pub(super) fn angles(&self, positions: &Tensor) -> Angles {
        let at = |rope: &Rotary| rope.at(positions, self.table.kind());
        Angles { plain: at(&self.rope), scaled: self.scaled_rope.as_ref().map(at) }
    }

    /// Computes the last hidden state before the final norm of `embeddings` [rows, count, hidden] at these
    /// positions \[count\]. `keep` sees the input of each layer. If `only` is given, an index \[1\] into the
    /// positions, the last layer computes the state of that position alone, [rows, 1, hidden].
    pub(super) fn forward(
        &self,
        embeddings: Tensor,
        positions: &Tensor,
        bias: Option<&Tensor>,
        cache: Option<&mut dyn KvCache>,
        only: Option<&Tensor>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        self.layers(embeddings, &self.angles(positions), bias, cache, only, keep)
    }

    /// Runs the layers as [`Self::forward`] does, with the angles of the positions at hand.
    pub(super) fn layers(
        &self,
        embeddings: Tensor,
        angles: &Angles,
        bias: Option<&Tensor>,
        mut cache: Option<&mut dyn KvCache>,
        only: Option<&Tensor>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        let scaled = angles.scaled.as_ref().unwrap_or(&angles.plain);
        let mut state = embeddings;
        let mut normed = match self.layers.first() {
            Some(first) => first.first_rows(&state),
            None => Activations::Values(state.shallow_clone()),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            keep(&state);
            let rope = if layer.scales_rope { scaled } else { &angles.plain };
            let kept = cache.as_mut().map(|cache| (&mut **cache as &mut dyn KvCache, index));
            let attended = match self.layers.get(index + 1) {
                Some(_) => layer.attention.forward(&normed, rope, bias, kept, None),
                None => layer.attention.forward(&normed, rope, bias, kept, only),
            };
            (state, normed) = match (self.layers.get(index + 1), only) {
                (None, Some(only)) => layer.finish(&state.index_select(1, only), &attended, None),
                (next, _) => layer.finish(&state, &attended, next),
            };
        }
        state
    }

    /// Applies the final norm.
    pub(super) fn output(&self, state: &Tensor) -> Tensor {
        self.norm.forward(state)
    }

    /// Returns the logits over the base vocabulary of outputs [.., hidden].
    pub(super) fn logits(&self, output: &Tensor) -> Tensor {
        self.head.forward(output)
    }

    /// Returns the logits [rows, vocabulary], fp32, of the token after the one position of states
    /// [rows, 1, hidden].
    pub(super) fn next_logits(&self, state: &Tensor) -> Tensor {
        self.logits(&self.output(&state.squeeze_dim(1))).to_kind(Kind::Float)
    }
}

/// A layer: attention and MLP, each with a residual, and with a norm before it (Qwen3) or after it (OLMo).
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention: GroupedAttention,
    pub(super) attention_norm: RmsNorm,
    pub(super) mlp: FusedMlp,
    pub(super) mlp_norm: RmsNorm,
    pub(super) norm_after: bool,
    pub(super) scales_rope: bool,
}

impl Layer {
    fn load(weights: &mut WeightLoader, index: i64, config: &TextConfig) -> Self {
        let name = format!("model.transformer.blocks.{index}");
        let norm = |part: &str, weights: &mut WeightLoader| {
            RmsNorm::load(weights, &format!("{name}.{part}"), config.hidden_size, config.rms_norm_eps)
        };
        Self {
            attention_norm: norm("attn_norm", weights),
            mlp_norm: norm("ff_norm", weights),
            attention: load_attention(weights, &format!("{name}.self_attn"), config),
            mlp: load_mlp(weights, &format!("{name}.mlp"), config),
            norm_after: config.norm_after,
            scales_rope: config.scales_rope(index),
        }
    }

    /// Returns the input of this layer's attention for a state that comes from no layer.
    fn first_rows(&self, state: &Tensor) -> Activations {
        let normed = if self.norm_after { state.shallow_clone() } else { self.attention_norm.forward(state) };
        self.attention.projection.rows(normed, Prologue::Nothing)
    }

    /// Returns the next state, given the output of this layer's attention, and the input of the next layer's
    /// attention.
    fn finish(&self, x: &Tensor, attended: &Tensor, next: Option<&Self>) -> (Tensor, Activations) {
        if self.norm_after {
            let x = x + self.attention_norm.forward(attended);
            let inner = self.mlp.up_and_gate.rows(x.shallow_clone(), Prologue::Nothing);
            let state = &x + self.mlp_norm.forward(&self.mlp.forward(&inner));
            let rows = next
                .map_or_else(|| Activations::Values(state.shallow_clone()), |next| next.first_rows(&state));
            return (state, rows);
        }
        let (x, inner) = self.mlp.up_and_gate.add_norm(x, attended, None, Norm::Rms(&self.mlp_norm));
        let added = self.mlp.forward(&inner);
        match next {
            Some(next) => {
                next.attention.projection.add_norm(&x, &added, None, Norm::Rms(&next.attention_norm))
            }
            None => (x + &added, Activations::Values(added)),
        }
    }
}

fn load_attention(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> GroupedAttention {
    let (hidden, head_width) = (config.hidden_size, config.head_dim);
    let (heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
    let norm_width = |heads: i64| match config.qk_norm_type {
        QkNorm::Head => head_width,
        QkNorm::Projection => heads * head_width,
    };
    let mut norm = |part: &str, heads| {
        RmsNorm::load(weights, &format!("{name}.{part}"), norm_width(heads), config.rms_norm_eps)
    };
    let (query_norm, key_norm) = (norm("q_norm", heads), norm("k_norm", key_heads));
    let mut product = |part: &str, inputs, outputs, bias| {
        let linear = Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, bias);
        QuantLinear::of(linear, weights)
    };
    let all = (heads + 2 * key_heads) * head_width;
    GroupedAttention {
        projection: product("att_proj", hidden, all, config.attention_bias),
        output: product("attn_out", heads * head_width, hidden, false),
        query_norm,
        key_norm,
        norm_over: config.qk_norm_type,
        heads,
        key_heads,
        head_width,
    }
}

fn load_mlp(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> FusedMlp {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let mut product = |part: &str, inputs, outputs| {
        let linear = Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, false);
        QuantLinear::of(linear, weights)
    };
    FusedMlp {
        up_and_gate: product("ff_proj", hidden, 2 * inner),
        down: product("ff_out", inner, hidden),
        activation: config.hidden_act,
    }
}
