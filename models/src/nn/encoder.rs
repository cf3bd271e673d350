//! The transformer encoder of image and text towers: pre-norm, with or without rotary positions and layer
//! scale.

use tch::Tensor;

use crate::kernels::{Norm, Prologue, add_norm, rotate};
use crate::nn::blocks::Mlp;
use crate::nn::layers::{Activation, Linear, attention, split_heads};
use crate::nn::norm::LayerNorm;
use crate::nn::quantized_linear::{Activations, QuantLinear};
use crate::snapshot::limits::check_transformer;
use crate::snapshot::weights::WeightLoader;

/// The names of a layer's parts in a snapshot, relative to the layer's own name and without `.weight` and
/// `.bias`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// The prefix of a layer's index.
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
    /// Checks that the sizes are in range and fit each other.
    ///
    /// # Errors
    /// Returns a message that names the size that is wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_transformer(self.hidden, self.intermediate, self.layers, self.heads, self.eps, 1)
    }

    /// Loads the MLP of these sizes from the linear maps with the given names.
    pub(crate) fn mlp(&self, weights: &mut WeightLoader, up: &str, down: &str) -> Mlp {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let mut product = |name, inputs, outputs| {
            let linear = Linear::load(weights, name, inputs, outputs, true);
            QuantLinear::of(linear, weights)
        };
        Mlp {
            gate: None,
            up: product(up, hidden, inner),
            down: product(down, inner, hidden),
            activation: self.activation,
        }
    }
}

/// All layers of a tower, without embeddings and final norm.
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) layers: Vec<Layer>,
    pub(crate) heads: i64,
}

/// The inputs that all layers share, beside the hidden state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EncoderInputs<'a> {
    /// The cosines and sines of the last positions, [positions, head width] each; positions before those are
    /// not rotated.
    pub(crate) rope: Option<(&'a Tensor, &'a Tensor)>,
    /// A mask that is true where a query may look; without one, attention is not restricted.
    pub(crate) attention_mask: Option<&'a Tensor>,
}

impl Encoder {
    /// Loads all layers of the tower called `name`, without layer scale.
    pub(crate) fn load(weights: &mut WeightLoader, name: &str, names: &Names, sizes: &Sizes) -> Self {
        let layer = |index| Layer::load(weights, &format!("{name}.{}.{index}", names.layers), names, sizes);
        Self { layers: (0..sizes.layers).map(layer).collect(), heads: sizes.heads }
    }

    /// Returns `embeddings` and each layer's output, all [batch, sequence, hidden].
    pub(crate) fn hidden_states(&self, embeddings: Tensor, inputs: EncoderInputs<'_>) -> Vec<Tensor> {
        let mut states = Vec::new();
        let _last = self.run(embeddings, inputs, None, &mut |state| states.push(state.shallow_clone()));
        states
    }

    /// Returns the last hidden state after the final norm, [batch, sequence, hidden].
    pub(crate) fn output(&self, embeddings: Tensor, inputs: EncoderInputs<'_>, norm: &LayerNorm) -> Tensor {
        self.run(embeddings, inputs, Some(norm), &mut |_| {})
    }

    /// Returns the [`Self::hidden_states`] at these indices, in this order. The others are dropped as soon as
    /// they have been used.
    pub(crate) fn some_hidden_states(&self, embeddings: Tensor, indices: &[usize]) -> Vec<Tensor> {
        let mut kept: Vec<Option<Tensor>> = indices.iter().map(|_| None).collect();
        let mut index = 0;
        let _last = self.run(embeddings, EncoderInputs::default(), None, &mut |state| {
            for (slot, _) in kept.iter_mut().zip(indices).filter(|(_, wanted)| **wanted == index) {
                *slot = Some(state.shallow_clone());
            }
            index += 1;
        });
        kept.into_iter().flatten().collect()
    }

    /// Returns the last hidden state, after the final norm if there is one. Each residual is added in one
    /// pass with the norm that follows it. `keep` sees every hidden state.
    fn run(
        &self,
        embeddings: Tensor,
        inputs: EncoderInputs<'_>,
        last: Option<&LayerNorm>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        keep(&embeddings);
        let Some(first) = self.layers.first() else {
            return last.map_or_else(|| embeddings.shallow_clone(), |norm| norm.forward(&embeddings));
        };
        let mut normed = first.inputs.rows(first.norm1.forward(&embeddings), Prologue::Nothing);
        let mut state = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = layer.attend(&normed, self.heads, inputs);
            let (projection, mlp) = (&layer.projection, &layer.mlp);
            let (scale1, scale2) = (layer.scale1.as_ref(), layer.scale2.as_ref());
            let (sum, rows) = projection.forward_add_norm(&attended, &state, scale1, &mlp.up, &layer.norm2);
            let inner = mlp.inner_rows(&rows);
            match (self.layers.get(index + 1), last) {
                (Some(next), _) => {
                    (state, normed) =
                        mlp.down.forward_add_norm(&inner, &sum, scale2, &next.inputs, &next.norm1);
                }
                (None, Some(last)) => {
                    let (state, normed) =
                        add_norm(&sum, &mlp.down.forward(&inner), scale2, Norm::Layer(last));
                    keep(&state);
                    return normed;
                }
                (None, None) => state = layer.scaled(&sum, &mlp.down.forward(&inner)),
            }
            keep(&state);
        }
        state
    }
}

/// A pre-norm layer: norm, attention, scale; then norm, MLP, scale; each with a residual.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) norm1: LayerNorm,
    /// The projection to queries, keys and values, side by side.
    pub(crate) inputs: QuantLinear,
    pub(crate) projection: QuantLinear,
    /// The layer scale of the attention, \[hidden\], if the layer has one; `scale2` is that of the MLP.
    pub(crate) scale1: Option<Tensor>,
    pub(crate) norm2: LayerNorm,
    pub(crate) mlp: Mlp,
    pub(crate) scale2: Option<Tensor>,
}

impl Layer {
    fn load(weights: &mut WeightLoader, name: &str, names: &Names, sizes: &Sizes) -> Self {
        let mut linear =
            |part: &str| Linear::load(weights, &format!("{name}.{part}"), sizes.hidden, sizes.hidden, true);
        let inputs = Linear::concatenated(&[names.query, names.key, names.value].map(&mut linear));
        let projection = linear(names.output);
        Self {
            inputs: QuantLinear::of(inputs, weights),
            projection: QuantLinear::of(projection, weights),
            norm1: LayerNorm::load(weights, &format!("{name}.{}", names.norm1), sizes.hidden, sizes.eps),
            scale1: None,
            norm2: LayerNorm::load(weights, &format!("{name}.{}", names.norm2), sizes.hidden, sizes.eps),
            mlp: sizes.mlp(weights, &format!("{name}.{}", names.up), &format!("{name}.{}", names.down)),
            scale2: None,
        }
    }

    /// Computes the attention and prepares it for the output projection.
    fn attend(&self, normed: &Activations, heads: i64, inputs: EncoderInputs<'_>) -> Activations {
        let joined = self.inputs.forward(normed);
        if let Some(angles) = inputs.rope {
            rotate(&joined, 2 * heads, angles);
        }
        let parts = joined.chunk(3, -1);
        let [query, key, value] = [0, 1, 2].map(|index| split_heads(&parts[index], heads));
        let attended = attention(&query, &key, &value, inputs.attention_mask);
        self.projection.rows(attended, Prologue::Nothing)
    }

    /// Adds the output of the MLP, after layer scale if there is one, to the residual.
    fn scaled(&self, residual: &Tensor, x: &Tensor) -> Tensor {
        match &self.scale2 {
            Some(scale) => residual + x * scale,
            None => residual + x,
        }
    }
}
