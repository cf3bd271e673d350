//! The transformer that both towers are made of: pre-norm, learned positions, biases everywhere.

use tch::Tensor;

use crate::layers::{Activation, LayerNorm, Linear, attention, check_transformer, split_heads};
use crate::weights::WeightLoader;

/// The sizes of one tower.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: i64,
    pub(super) intermediate: i64,
    pub(super) layers: i64,
    pub(super) heads: i64,
    pub(super) activation: Activation,
    pub(super) eps: f64,
}

impl Sizes {
    pub(super) fn check(&self) -> Result<(), String> {
        check_transformer(self.hidden, self.intermediate, self.layers, self.heads, self.eps, 1)
    }
}

/// All layers of a tower, without embeddings and final norm.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
    heads: i64,
}

impl Encoder {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, sizes: &Sizes) -> Self {
        let layer = |index| Layer::load(weights, &format!("{name}.layers.{index}"), sizes);
        Self { layers: (0..sizes.layers).map(layer).collect(), heads: sizes.heads }
    }

    /// `embeddings` and each layer's output, all [batch, sequence, hidden].
    pub(super) fn hidden_states(&self, embeddings: Tensor, allowed: Option<&Tensor>) -> Vec<Tensor> {
        let mut states = vec![embeddings];
        for layer in &self.layers {
            states.push(layer.forward(&states[states.len() - 1], self.heads, allowed));
        }
        states
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    projection: Linear,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Layer {
    fn load(weights: &mut WeightLoader, name: &str, sizes: &Sizes) -> Self {
        let mut linear = |part: &str| {
            Linear::load(weights, &format!("{name}.self_attn.{part}"), sizes.hidden, sizes.hidden, true)
        };
        Self {
            query: linear("q_proj"),
            key: linear("k_proj"),
            value: linear("v_proj"),
            projection: linear("out_proj"),
            norm1: LayerNorm::load(weights, &format!("{name}.layer_norm1"), sizes.hidden, sizes.eps),
            norm2: LayerNorm::load(weights, &format!("{name}.layer_norm2"), sizes.hidden, sizes.eps),
            mlp: Mlp::load(weights, &format!("{name}.mlp"), sizes),
        }
    }

    fn forward(&self, x: &Tensor, heads: i64, allowed: Option<&Tensor>) -> Tensor {
        let normed = self.norm1.forward(x);
        let [query, key, value] =
            [&self.query, &self.key, &self.value].map(|linear| split_heads(&linear.forward(&normed), heads));
        let x = x + self.projection.forward(&attention(&query, &key, &value, allowed));
        let added = self.mlp.forward(&self.norm2.forward(&x));
        x + added
    }
}

/// fc2(act(fc1(x))).
#[derive(Debug)]
pub(super) struct Mlp {
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Mlp {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, sizes: &Sizes) -> Self {
        Self {
            fc1: Linear::load(weights, &format!("{name}.fc1"), sizes.hidden, sizes.intermediate, true),
            fc2: Linear::load(weights, &format!("{name}.fc2"), sizes.intermediate, sizes.hidden, true),
            activation: sizes.activation,
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        self.fc2.forward(&self.activation.forward(&self.fc1.forward(x)))
    }
}
