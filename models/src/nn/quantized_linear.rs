//! Linear maps within layers, whose products may be computed in fp8, and the activations that they take.

use tch::{Kind, Tensor};

use crate::kernels::fp8::{Fp8Rows, Fp8Weights};
use crate::kernels::step::RowWeights;
use crate::kernels::{self, Gelu, Norm, Prologue, add_norm_quantised, gelu, quantised};
use crate::nn::layers::Linear;
use crate::nn::linear::Epilogue;
use crate::nn::norm::LayerNorm;
use crate::runtime::device::FP8_COMPUTED_IN;
use crate::snapshot::weights::WeightLoader;

/// The number of values from which on the residual is added with the product. For fewer, the kernel that adds
/// and normalizes at once is faster, since it is bound by its launch, not by memory (SigLIP2 so400m at batch
/// 1, 0.8 M values: 2.30 ms instead of 2.25; at batch 8, 6.7 M values: 11.3 ms instead of 11.7).
const ADDED_BEHIND_MIN: usize = 4 << 20;

/// Activations [.., inputs] in the format that a [`QuantLinear`] takes.
#[derive(Debug)]
pub(crate) enum Activations {
    Values(Tensor),
    Fp8(Fp8Rows),
}

/// An affine map of the last dimension, in fp8 or not.
#[derive(Debug)]
pub(crate) enum QuantLinear {
    /// A map in the number format of its input.
    Plain(Linear),
    /// A map in fp8, with a bias \[outputs\] in bf16.
    Fp8 { weights: Fp8Weights, bias: Option<Tensor> },
}

impl QuantLinear {
    /// Quantizes a layer to fp8 if the loader is set to and tensor cores support its sizes.
    pub(crate) fn of(linear: Linear, loader: &WeightLoader) -> Self {
        if !loader.fp8_products() {
            return Self::Plain(linear);
        }
        match Fp8Weights::of(linear.weight()) {
            Some(weights) => Self::Fp8 { weights, bias: linear.into_bias() },
            None => Self::Plain(linear),
        }
    }

    /// Prepares `x` [.., inputs] for [`Self::forward`], after the operation `before`. Consumes `x`, since it
    /// may be overwritten.
    pub(crate) fn rows(&self, x: Tensor, before: Prologue) -> Activations {
        match (self, before) {
            (Self::Fp8 { .. }, _) => Activations::Fp8(quantised(x, before)),
            (Self::Plain(_), Prologue::Nothing) => Activations::Values(x),
            (Self::Plain(_), Prologue::Gelu(form)) => Activations::Values(gelu(x, form)),
        }
    }

    /// Computes residual + x · scale, and the norm of it as [`Self::forward`] takes it. `scale` is \[width\],
    /// the others are [.., width].
    pub(crate) fn add_norm(
        &self,
        residual: &Tensor,
        x: &Tensor,
        scale: Option<&Tensor>,
        norm: Norm<'_>,
    ) -> (Tensor, Activations) {
        match self {
            Self::Fp8 { .. } => {
                let (sum, normed) = add_norm_quantised(residual, x, scale, norm);
                (sum, Activations::Fp8(normed))
            }
            Self::Plain(_) => {
                let (sum, normed) = kernels::add_norm(residual, x, scale, norm);
                (sum, Activations::Values(normed))
            }
        }
    }

    /// Computes residual + self(rows) · scale, and the norm of it as `next` takes it. `scale` is \[width\],
    /// the residual is [.., width].
    pub(crate) fn forward_add_norm(
        &self,
        rows: &Activations,
        residual: &Tensor,
        scale: Option<&Tensor>,
        next: &Self,
        norm: &LayerNorm,
    ) -> (Tensor, Activations) {
        match (self, rows, scale, next) {
            // With the product, the sum is rounded once and need not be written and read again.
            (Self::Plain(linear), Activations::Values(x), None, Self::Plain(_))
                if is_half(x) && x.numel() >= ADDED_BEHIND_MIN =>
            {
                let sum = linear.forward_then(x, Epilogue::Add(residual));
                let normed = Activations::Values(norm.forward(&sum));
                (sum, normed)
            }
            _ => next.add_norm(residual, &self.forward(rows), scale, Norm::Layer(norm)),
        }
    }

    /// Computes GELU of the outputs as `next` takes it.
    pub(crate) fn forward_gelu(&self, rows: &Activations, form: Gelu, next: &Self) -> Activations {
        match (self, rows, next) {
            (Self::Plain(linear), Activations::Values(x), Self::Plain(_)) if form.is_behind_products(x) => {
                Activations::Values(linear.forward_then(x, Epilogue::Gelu(form)))
            }
            _ => next.rows(self.forward(rows), Prologue::Gelu(form)),
        }
    }

    /// Returns the parameters as the kernels for a single row take them.
    pub(crate) fn row_weights(&self) -> RowWeights<'_> {
        match self {
            Self::Plain(linear) => linear.row_weights(),
            Self::Fp8 { weights, bias } => RowWeights { bias: bias.as_ref(), ..weights.row_weights() },
        }
    }

    /// Returns the number of outputs.
    pub(crate) fn outputs(&self) -> i64 {
        match self {
            Self::Plain(linear) => linear.outputs(),
            Self::Fp8 { weights, .. } => weights.outputs(),
        }
    }

    /// Computes the map, [.., outputs]. Activations that were prepared for a product of another format are
    /// converted.
    pub(crate) fn forward(&self, rows: &Activations) -> Tensor {
        match (self, rows) {
            (Self::Plain(linear), Activations::Values(x)) => linear.forward(x),
            (Self::Plain(linear), Activations::Fp8(x)) => {
                linear.forward(&x.widened().to_kind(FP8_COMPUTED_IN))
            }
            (Self::Fp8 { weights, bias }, Activations::Fp8(x)) => weights.multiply(x, bias.as_ref()),
            (Self::Fp8 { weights, bias }, Activations::Values(x)) => {
                weights.multiply(&quantised(x.shallow_clone(), Prologue::Nothing), bias.as_ref())
            }
        }
    }
}

/// Returns whether a product of `x` may have an epilogue in cuBLASLt: on a GPU, in half precision.
fn is_half(x: &Tensor) -> bool {
    x.device().is_cuda() && matches!(x.kind(), Kind::BFloat16 | Kind::Half)
}

impl Gelu {
    /// Returns whether cuBLASLt may compute this form with the product of `x`. Its own form is that of tanh.
    /// In bf16 that is no farther from either form than rounding before GELU is; fp16 rounds less.
    fn is_behind_products(self, x: &Tensor) -> bool {
        is_half(x) && (self == Self::Tanh || x.kind() == Kind::BFloat16)
    }
}
