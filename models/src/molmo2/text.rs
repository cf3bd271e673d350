//! The text model: a Qwen3-like or OLMo-like decoder whose first positions hold images.

use tch::{Device, Kind, Tensor};

use super::config::TextConfig;
use crate::ModelError;
use crate::blocks::{FusedMlp, GroupedAttention, QkNorm, RmsNorm};
use crate::decode_step::{DecodeBuffers, DecodeStep};
use crate::decoder::Cache;
use crate::fused::{Norm, add_norm};
use crate::layers::Linear;
use crate::rotary::Rotary;
use crate::static_cache::DecoderSizes;
use crate::weights::WeightLoader;

#[derive(Debug)]
pub(super) struct TextModel {
    /// [base vocabulary and added tokens, hidden].
    table: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    /// Of the base vocabulary only: the added tokens are never written.
    head: Linear,
    rope: Rotary,
    /// Of the layers that scale it, where it is another.
    scaled_rope: Option<Rotary>,
    key_heads: i64,
    head_width: i64,
}

/// Cosine and sine of positions \[count\], [count, head width] each.
#[derive(Debug)]
pub(super) struct Angles {
    plain: (Tensor, Tensor),
    scaled: Option<(Tensor, Tensor)>,
}

impl Angles {
    /// Of the positions 0, 1, 2, …, those at `positions`.
    fn at(&self, positions: &Tensor) -> Self {
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
            // One of them is on the CPU where it is faulty, which `finish` will report.
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

    /// [rows, count] → [rows, count, hidden].
    pub(super) fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.table, ids, -1, false, false)
    }

    /// What may be looked at, true in [count, keys], as what is added to attention logits.
    pub(super) fn bias(&self, allowed: &Tensor) -> Tensor {
        let none = Tensor::zeros(allowed.size(), (self.table.kind(), self.device()));
        none.masked_fill(&allowed.to_device(self.device()).logical_not(), f64::NEG_INFINITY)
            .unsqueeze(0)
            .unsqueeze(0)
    }

    /// The angles of positions \[count\].
    fn angles(&self, positions: &Tensor) -> Angles {
        let at = |rope: &Rotary| rope.at(positions, self.table.kind());
        Angles { plain: at(&self.rope), scaled: self.scaled_rope.as_ref().map(at) }
    }

    /// `embeddings` [rows, count, hidden] of these positions \[count\] → the last hidden state before the final norm.
    /// `keep` sees the input of each layer.
    pub(super) fn forward(
        &self,
        embeddings: Tensor,
        positions: &Tensor,
        bias: Option<&Tensor>,
        cache: Option<&mut dyn Cache>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        self.layers(embeddings, &self.angles(positions), bias, cache, keep)
    }

    fn layers(
        &self,
        embeddings: Tensor,
        angles: &Angles,
        bias: Option<&Tensor>,
        mut cache: Option<&mut dyn Cache>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        let scaled = angles.scaled.as_ref().unwrap_or(&angles.plain);
        let mut state = embeddings;
        let mut normed = match self.layers.first() {
            Some(first) if !first.norm_after => first.attention_norm.forward(&state),
            _ => state.shallow_clone(),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            keep(&state);
            let rope = if layer.scales_rope { scaled } else { &angles.plain };
            let kept = cache.as_mut().map(|cache| (&mut **cache as &mut dyn Cache, index));
            (state, normed) = layer.forward(&state, &normed, rope, bias, kept, self.layers.get(index + 1));
        }
        state
    }

    pub(super) fn output(&self, state: &Tensor) -> Tensor {
        self.norm.forward(state)
    }

    /// Logits over the base vocabulary of outputs [.., hidden].
    pub(super) fn logits(&self, output: &Tensor) -> Tensor {
        self.head.forward(output)
    }

    /// The logits [rows, vocabulary], fp32, of what follows the position `at` \[1\] of states [rows, count, hidden].
    pub(super) fn next_logits(&self, state: &Tensor, at: &Tensor) -> Tensor {
        self.logits(&self.output(&state.index_select(1, at).squeeze_dim(1))).to_kind(Kind::Float)
    }
}

/// The buffers of a text that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) buffers: DecodeBuffers,
    /// Of all positions that there are.
    angles: Angles,
}

impl Writing {
    pub(super) fn new(model: &TextModel, capacity: i64) -> Self {
        let sizes = model.sizes();
        let positions = Tensor::arange(capacity, (Kind::Int64, sizes.device));
        Self { buffers: DecodeBuffers::new(&sizes, 1, capacity), angles: model.angles(&positions) }
    }
}

/// The next token of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) model: &'a TextModel,
    pub(super) writing: &'a Writing,
}

impl DecodeStep for Step<'_> {
    fn buffers(&self) -> &DecodeBuffers {
        &self.writing.buffers
    }

    fn step(&self) -> Result<(), ModelError> {
        let (model, buffers) = (self.model, &self.writing.buffers);
        let (position, bias) = (buffers.position(), buffers.bias());
        let angles = self.writing.angles.at(position);
        let mut cache = buffers.cache.at(position);
        let embeddings = model.embed(&buffers.token());
        let state = model.layers(embeddings, &angles, Some(&bias), Some(&mut cache), &mut |_| {});
        buffers.advance(&model.logits(&model.output(&state.squeeze_dim(1))));
        Ok(())
    }
}

/// Attention and MLP, each with a residual, and with a norm before it (Qwen3) or after it (OLMo).
#[derive(Debug)]
struct Layer {
    attention: GroupedAttention,
    attention_norm: RmsNorm,
    mlp: FusedMlp,
    mlp_norm: RmsNorm,
    norm_after: bool,
    scales_rope: bool,
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

    /// The next state, and its norm by the layer after this one. `normed` is `x` after this layer's own first norm, or
    /// `x` itself where norms come after.
    fn forward(
        &self,
        x: &Tensor,
        normed: &Tensor,
        rope: &(Tensor, Tensor),
        bias: Option<&Tensor>,
        kept: Option<(&mut dyn Cache, usize)>,
        next: Option<&Self>,
    ) -> (Tensor, Tensor) {
        let attended = self.attention.forward(normed, rope, bias, kept);
        if self.norm_after {
            let x = x + self.attention_norm.forward(&attended);
            let state = &x + self.mlp_norm.forward(&self.mlp.forward(&x));
            return (state.shallow_clone(), state);
        }
        let (x, inner) = add_norm(x, &attended, None, Norm::Rms(&self.mlp_norm));
        let added = self.mlp.forward(&inner);
        match next {
            Some(next) => add_norm(&x, &added, None, Norm::Rms(&next.attention_norm)),
            None => (x + &added, added),
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
    let mut linear = |part: &str, inputs, outputs, bias| {
        Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, bias)
    };
    let all = (heads + 2 * key_heads) * head_width;
    GroupedAttention {
        projection: linear("att_proj", hidden, all, config.attention_bias),
        output: linear("attn_out", heads * head_width, hidden, false),
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
    FusedMlp {
        up_and_gate: Linear::load(weights, &format!("{name}.ff_proj"), hidden, 2 * inner, false),
        down: Linear::load(weights, &format!("{name}.ff_out"), inner, hidden, false),
        activation: config.hidden_act,
    }
}
