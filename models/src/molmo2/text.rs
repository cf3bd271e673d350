//! The text model: a Qwen3-like or OLMo-like decoder whose first positions hold images.

use tch::{Device, Kind, Tensor};

use super::config::TextConfig;
use crate::blocks::{GroupedAttention, Mlp, QkNorm, RmsNorm};
use crate::decoder::{Decoder, KvCache};
use crate::layers::Linear;
use crate::rotary::Rotary;
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
    scaled_rope: Rotary,
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
            scaled_rope: Rotary::new(config.head_dim, theta, scaling, device),
        })
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
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

    /// `embeddings` [rows, count, hidden] of these positions \[count\] → the last hidden state before the final norm.
    /// `keep` sees the input of each layer.
    pub(super) fn forward(
        &self,
        embeddings: Tensor,
        positions: &Tensor,
        bias: Option<&Tensor>,
        mut cache: Option<&mut KvCache>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        let kind = embeddings.kind();
        let (rope, scaled) = (self.rope.at(positions, kind), self.scaled_rope.at(positions, kind));
        let mut state = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            keep(&state);
            let rope = if layer.scales_rope { &scaled } else { &rope };
            let kept = cache.as_deref_mut().map(|cache| (cache, index));
            state = layer.forward(&state, rope, bias, kept);
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

    /// The logits [rows, vocabulary], fp32, of what follows the last of these states [rows, count, hidden].
    pub(super) fn next_logits(&self, state: &Tensor) -> Tensor {
        self.logits(&self.output(&state.select(1, -1))).to_kind(Kind::Float)
    }
}

/// A text that is being written.
#[derive(Debug)]
pub(super) struct Writing<'a> {
    pub(super) model: &'a TextModel,
    pub(super) cache: KvCache,
}

impl Decoder for Writing<'_> {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        let (begin, count) = (self.cache.positions(), tokens.size()[1]);
        let positions = Tensor::arange_start(begin, begin + count, (Kind::Int64, self.model.device()));
        let bias = (count > 1).then(|| {
            let before = Tensor::ones([count, begin + count], (Kind::Bool, self.model.device()));
            self.model.bias(&before.tril(begin))
        });
        let embeddings = self.model.embed(tokens);
        let state =
            self.model.forward(embeddings, &positions, bias.as_ref(), Some(&mut self.cache), &mut |_| {});
        self.model.next_logits(&state)
    }

    fn select(&mut self, rows: &Tensor) {
        self.cache.select(rows);
    }
}

/// Attention and MLP, each with a residual, and with a norm before it (Qwen3) or after it (OLMo).
#[derive(Debug)]
struct Layer {
    attention: GroupedAttention,
    attention_norm: RmsNorm,
    mlp: Mlp,
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

    fn forward(
        &self,
        x: &Tensor,
        rope: &(Tensor, Tensor),
        bias: Option<&Tensor>,
        kept: Option<(&mut KvCache, usize)>,
    ) -> Tensor {
        let normed =
            |x: &Tensor, norm: &RmsNorm, here: bool| if here { norm.forward(x) } else { x.shallow_clone() };
        let before = !self.norm_after;
        let attended = self.attention.forward(&normed(x, &self.attention_norm, before), rope, bias, kept);
        let x = x + normed(&attended, &self.attention_norm, self.norm_after);
        let added = self.mlp.forward(&normed(&x, &self.mlp_norm, before));
        x + normed(&added, &self.mlp_norm, self.norm_after)
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

/// `ff_proj` holds first the rows that are gated, then those of the gate.
fn load_mlp(weights: &mut WeightLoader, name: &str, config: &TextConfig) -> Mlp {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let [up, gate] = Linear::load(weights, &format!("{name}.ff_proj"), hidden, 2 * inner, false).halves();
    Mlp {
        gate: Some(gate),
        up,
        down: Linear::load(weights, &format!("{name}.ff_out"), inner, hidden, false),
        activation: config.hidden_act,
    }
}
