//! Single layers that the architectures share, and the names of their parameters in snapshots.

use serde::Deserialize;
use tch::Tensor;

use crate::kernels::step::RowWeights;
use crate::nn::attention::scaled_dot_product;
use crate::nn::linear::{Epilogue, linear, linear_then};
use crate::snapshot::weights::WeightLoader;

/// An affine map of the last dimension, as `torch.nn.Linear`.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `{name}.weight` of [outputs, inputs], and `{name}.bias` of \[outputs\] if `bias` is true.
    pub(crate) fn load(
        weights: &mut WeightLoader,
        name: &str,
        inputs: i64,
        outputs: i64,
        bias: bool,
    ) -> Self {
        Self {
            weight: weights.tensor(&format!("{name}.weight"), &[outputs, inputs]),
            bias: bias.then(|| weights.tensor(&format!("{name}.bias"), &[outputs])),
        }
    }

    /// Creates a layer from a weight of \[outputs, inputs\] and a bias of \[outputs\].
    pub(crate) fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Combines several maps of the same input into one, with their outputs side by side.
    pub(crate) fn concatenated(parts: &[Self]) -> Self {
        let all = |tensors: Vec<&Tensor>| {
            // An empty tensor stands for a faulty one, which `finish` will report.
            let faulty = tensors.iter().find(|tensor| tensor.numel() == 0);
            faulty.map_or_else(|| Tensor::cat(&tensors, 0), |tensor| tensor.shallow_clone())
        };
        let weight = all(parts.iter().map(|part| &part.weight).collect());
        if parts.iter().all(|part| part.bias.is_none()) {
            return Self { weight, bias: None };
        }
        let bias = |part: &Self| match &part.bias {
            Some(bias) => bias.shallow_clone(),
            None => Tensor::zeros([part.outputs()], (part.weight.kind(), part.weight.device())),
        };
        let biases: Vec<Tensor> = parts.iter().map(bias).collect();
        Self { weight, bias: Some(all(biases.iter().collect())) }
    }

    /// Returns the weight, [outputs, inputs].
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Returns the bias, \[outputs\], if the layer has one.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Turns the layer into its bias, \[outputs\], if it has one.
    pub(crate) fn into_bias(self) -> Option<Tensor> {
        self.bias
    }

    /// Returns the number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Returns the parameters as the kernels for a single row take them.
    pub(crate) fn row_weights(&self) -> RowWeights<'_> {
        RowWeights { values: &self.weight, scales: None, bias: self.bias.as_ref() }
    }

    /// Computes the map of `x` [.., inputs], [.., outputs].
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }

    /// Computes the map and its epilogue.
    pub(crate) fn forward_then(&self, x: &Tensor, then: Epilogue<'_>) -> Tensor {
        linear_then(x, &self.weight, self.bias.as_ref(), then)
    }
}

/// An activation function by its name in `config.json` (`hidden_act`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Activation {
    #[serde(rename = "gelu")]
    Gelu,
    #[serde(rename = "gelu_pytorch_tanh")]
    GeluTanh,
    #[serde(rename = "silu")]
    Silu,
}

impl Activation {
    /// Applies the function to each value.
    pub(crate) fn forward(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Silu => x.silu(),
        }
    }
}

/// A convolution whose stride equals its kernel size, computed as the matrix product that it is.
///
/// This is exact in fp32 on CUDA, too, where a convolution would use TF32 by default.
#[derive(Debug)]
pub(crate) struct PatchEmbedding {
    projection: Linear,
    patch: i64,
}

impl PatchEmbedding {
    /// Loads `{name}.weight` of [width, 3, patch, patch] and `{name}.bias` of \[width\].
    pub(crate) fn load(weights: &mut WeightLoader, name: &str, patch: i64, width: i64) -> Self {
        let weight = weights.tensor(&format!("{name}.weight"), &[width, 3, patch, patch]);
        let bias = weights.tensor(&format!("{name}.bias"), &[width]);
        // An empty tensor stands for a faulty one, which `finish` will report.
        let weight = if weight.numel() == 0 { weight } else { weight.flatten(1, -1) };
        Self { projection: Linear::from_tensors(weight, Some(bias)), patch }
    }

    /// Embeds [batch, 3, height, width] as [batch, rows · columns, hidden]. Pixels beyond the last whole
    /// patch are ignored, as in a convolution.
    pub(crate) fn forward(&self, pixels: &Tensor) -> Tensor {
        let (batch, channels, height, width) = size4(pixels);
        let (rows, columns) = (height / self.patch, width / self.patch);
        let whole = pixels.narrow(2, 0, rows * self.patch).narrow(3, 0, columns * self.patch);
        let patches = whole
            .reshape([batch, channels, rows, self.patch, columns, self.patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, channels * self.patch * self.patch]);
        self.projection.forward(&patches)
    }
}

/// Returns the four sizes of a batch of images.
pub(crate) fn size4(x: &Tensor) -> (i64, i64, i64, i64) {
    let size = x.size();
    assert!(size.len() == 4, "expected a tensor of four dimensions, got {size:?}");
    (size[0], size[1], size[2], size[3])
}

/// Splits heads: [batch, sequence, hidden] → [batch, heads, sequence, hidden / heads].
pub(crate) fn split_heads(x: &Tensor, heads: i64) -> Tensor {
    let size = x.size();
    x.view([size[0], size[1], heads, size[2] / heads]).transpose(1, 2)
}

/// Computes softmax(q kᵀ / √d) v over split heads and joins the heads again: [batch, queries, hidden].
/// `attention_mask` is true where a query may look, and broadcasts to [batch, heads, queries, keys].
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    attention_mask: Option<&Tensor>,
) -> Tensor {
    scaled_dot_product(query, key, value, attention_mask, false).transpose(1, 2).flatten(2, 3)
}

/// Divides each row by its Euclidean norm.
pub(crate) fn unit_rows(x: &Tensor) -> Tensor {
    x / x.norm_scalaropt_dim(2.0, [-1], true)
}
