//! Norms over the last dimension: their parameters, and their forward passes by libtorch's own operations.

use tch::Tensor;

/// A layer norm over the last dimension, as `torch.nn.LayerNorm`.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl LayerNorm {
    /// Returns the normalized rows.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

/// An RMS norm: x / √(mean(x²) + eps) · weight over the last dimension, computed in fp32.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// Returns the normalized rows.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.weight.size(), Some(&self.weight), self.eps)
    }
}

/// A norm over the last dimension.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Norm<'a> {
    Layer(&'a LayerNorm),
    Rms(&'a RmsNorm),
}

impl Norm<'_> {
    /// Returns the normalized rows.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }

    /// Returns the weight, the bias, the epsilon below the root, and whether the mean is subtracted.
    pub(super) fn parts(&self) -> (&Tensor, Option<&Tensor>, f64, bool) {
        match self {
            Self::Layer(norm) => (&norm.weight, Some(&norm.bias), norm.eps, true),
            Self::Rms(norm) => (&norm.weight, None, norm.eps, false),
        }
    }
}
