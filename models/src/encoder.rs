//! The transformer that SigLIP-like towers are made of: pre-norm, learned positions, biases everywhere.

use tch::Tensor;

use crate::blocks::Mlp;
use crate::layers::{Activation, LayerNorm, Linear, attention, check_transformer, split_heads};
use crate::weights::WeightLoader;

/// How a snapshot calls the parts of a layer; without biases and weights, relative to the layer's own name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Before a layer's index.
    pub(crate) layers: &'static str,
    pub(crate) norm1: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) output: &'static str,
    pub(crate) norm2: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// The sizes of one tower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) hidden: i64,
    pub(crate) intermediate: i64,
    pub(crate) layers: i64,
    pub(crate) heads: i64,
    pub(crate) activation: Activation,
    pub(crate) eps: f64,
}

impl Sizes {
    pub(crate) fn check(&self) -> Result<(), String> {
        check_transformer(self.hidden, self.intermediate, self.layers, self.heads, self.eps, 1)
    }

    /// The MLP of these sizes whose linear maps are called so.
    pub(crate) fn mlp(&self, weights: &mut WeightLoader, up: &str, down: &str) -> Mlp {
        let (hidden, inner) = (self.hidden, self.intermediate);
        Mlp {
            gate: None,
            up: Linear::load(weights, up, hidden, inner, true),
            down: Linear::load(weights, down, inner, hidden, true),
            activation: self.activation,
        }
    }
}

/// All layers of a tower, without embeddings and final norm.
#[derive(Debug)]
pub(crate) struct Encoder {
    layers: Vec<Layer>,
    heads: i64,
}

impl Encoder {
    pub(crate) fn load(weights: &mut WeightLoader, name: &str, names: &Names, sizes: &Sizes) -> Self {
        let layer = |index| Layer::load(weights, &format!("{name}.{}.{index}", names.layers), names, sizes);
        Self { layers: (0..sizes.layers).map(layer).collect(), heads: sizes.heads }
    }

    /// `embeddings` and each layer's output, all [batch, sequence, hidden].
    pub(crate) fn hidden_states(&self, embeddings: Tensor, allowed: Option<&Tensor>) -> Vec<Tensor> {
        let mut states = vec![embeddings];
        for layer in &self.layers {
            states.push(layer.forward(&states[states.len() - 1], self.heads, allowed));
        }
        states
    }

    /// Those of the [`Self::hidden_states`] with these indices, in this order; the others are not kept.
    pub(crate) fn some_hidden_states(&self, embeddings: Tensor, indices: &[usize]) -> Vec<Tensor> {
        let mut kept: Vec<Option<Tensor>> = indices.iter().map(|_| None).collect();
        let mut state = embeddings;
        for index in 0..=self.layers.len() {
            for (slot, _) in kept.iter_mut().zip(indices).filter(|(_, wanted)| **wanted == index) {
                *slot = Some(state.shallow_clone());
            }
            if let Some(layer) = self.layers.get(index) {
                state = layer.forward(&state, self.heads, None);
            }
        }
        kept.into_iter().flatten().collect()
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
    fn load(weights: &mut WeightLoader, name: &str, names: &Names, sizes: &Sizes) -> Self {
        let mut linear =
            |part: &str| Linear::load(weights, &format!("{name}.{part}"), sizes.hidden, sizes.hidden, true);
        Self {
            query: linear(names.query),
            key: linear(names.key),
            value: linear(names.value),
            projection: linear(names.output),
            norm1: LayerNorm::load(weights, &format!("{name}.{}", names.norm1), sizes.hidden, sizes.eps),
            norm2: LayerNorm::load(weights, &format!("{name}.{}", names.norm2), sizes.hidden, sizes.eps),
            mlp: sizes.mlp(weights, &format!("{name}.{}", names.up), &format!("{name}.{}", names.down)),
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
