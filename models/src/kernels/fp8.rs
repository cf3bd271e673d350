//! Matrix products in fp8 (e4m3), with one scale for each row of both operands: weights are quantized once,
//! activations for each product.
//!
//! Micikevicius et al., "FP8 Formats for Deep Learning", 2022 (arXiv 2209.05433).

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Kind, Tensor};

use crate::kernels::step::RowWeights;
use crate::runtime::device::FP8_COMPUTED_IN;

/// The greatest value of e4m3, to which the greatest magnitude of a row is scaled.
const LARGEST: f64 = 448.0;
/// The lower bound of a row's greatest magnitude, so that a row of nothing but zeros has a scale, too.
const ROW_MAX_MIN: f64 = 1e-12;
/// The number of values that both sizes of weights must be a multiple of, for tensor cores.
const MULTIPLE: i64 = 16;
/// Says that partial sums are rounded to fewer bits than fp32 has: Hopper is half as fast otherwise.
const ADDS_UP_FAST: bool = true;

/// Returns the number of bytes that weights of this shape take, with their scales.
pub(crate) fn weight_bytes(shape: &[i64]) -> u64 {
    let values: i64 = shape.iter().product();
    let scales = shape.first().copied().unwrap_or(0) * Kind::Float.elt_size_in_bytes() as i64;
    u64::try_from(values + scales).unwrap_or(0)
}

/// Returns whether tensor cores support weights of this shape.
pub(crate) fn fits(shape: &[i64]) -> bool {
    shape.len() == 2 && shape.iter().all(|side| *side > 0 && side % MULTIPLE == 0)
}

/// True once libtorch's products have refused a bias on this machine: cuBLAS reveals this only when it is
/// given one.
static BIAS_IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// Rows of fp8 values with their scales.
#[derive(Debug)]
pub(crate) struct Fp8Rows {
    /// The values, [.., width], contiguous.
    pub(crate) values: Tensor,
    /// The factors by which the values of a row are dequantized, [rows, 1] in fp32.
    pub(crate) scales: Tensor,
}

impl Fp8Rows {
    /// Quantizes `x` [.., width] by libtorch's own operations.
    pub(crate) fn of(x: &Tensor) -> Self {
        let wide = x.to_kind(Kind::Float).flatten(0, -2);
        let largest = wide.abs().amax([-1].as_slice(), true).clamp_min(ROW_MAX_MIN);
        let values = (wide * (largest.reciprocal() * LARGEST)).clamp(-LARGEST, LARGEST);
        Self {
            values: values.to_kind(Kind::Float8e4m3fn).view(x.size().as_slice()),
            // Multiplied by the inverse, as CUDA divides by a constant.
            scales: largest * LARGEST.recip(),
        }
    }

    /// Dequantizes the rows to fp32, [.., width].
    pub(crate) fn widened(&self) -> Tensor {
        let size = self.values.size();
        (self.values.to_kind(Kind::Float).flatten(0, -2) * &self.scales).view(size.as_slice())
    }
}

/// Weights [outputs, inputs] as rows in fp8.
#[derive(Debug)]
pub(crate) struct Fp8Weights(Fp8Rows);

impl Fp8Weights {
    /// Quantizes weights [outputs, inputs]; returns `None` if tensor cores do not support their sizes.
    pub(crate) fn of(weights: &Tensor) -> Option<Self> {
        fits(&weights.size()).then(|| Self(Fp8Rows::of(weights)))
    }

    pub(crate) fn outputs(&self) -> i64 {
        self.0.values.size()[0]
    }

    /// Returns the weights as the kernels for a single row take them; that row stays in bf16.
    pub(crate) fn row_weights(&self) -> RowWeights<'_> {
        RowWeights { values: &self.0.values, scales: Some(&self.0.scales), bias: None }
    }

    /// Dequantizes the weights to fp32.
    #[cfg(test)]
    pub(crate) fn widened(&self) -> Tensor {
        self.0.widened()
    }

    /// Computes x · weightsᵀ + bias, [.., outputs] in bf16.
    pub(crate) fn multiply(&self, x: &Fp8Rows, bias: Option<&Tensor>) -> Tensor {
        let mut size = x.values.size();
        if let Some(last) = size.last_mut() {
            *last = self.outputs();
        }
        let rows = x.values.flatten(0, -2);
        let product = if rows.device().is_cuda() {
            self.multiply_scaled(&rows, &x.scales, bias)
        } else {
            let bias = bias.map(|bias| bias.to_kind(Kind::Float));
            let rows = Fp8Rows { values: rows, scales: x.scales.shallow_clone() };
            rows.widened().linear(&self.0.widened(), bias.as_ref()).to_kind(FP8_COMPUTED_IN)
        };
        product.view(size.as_slice())
    }

    fn multiply_scaled(&self, rows: &Tensor, scales: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let (weights, weight_scales) = (self.0.values.tr(), self.0.scales.tr());
        let multiply = |bias: Option<&Tensor>| {
            rows.f_internal_scaled_mm(
                &weights,
                scales,
                &weight_scales,
                bias,
                None,
                FP8_COMPUTED_IN,
                ADDS_UP_FAST,
            )
        };
        let together =
            bias.filter(|_| !BIAS_IS_REFUSED.load(Ordering::Relaxed)).map(|bias| multiply(Some(bias)));
        let refusal = match together {
            Some(Ok(sum)) => return sum,
            Some(Err(error)) => Some(error),
            None => None,
        };
        // If the refusal was for lack of memory, this fails as well, and biases are not blamed for it.
        let product = rows.internal_scaled_mm(
            &weights,
            scales,
            &weight_scales,
            None::<&Tensor>,
            None,
            FP8_COMPUTED_IN,
            ADDS_UP_FAST,
        );
        if let Some(error) = refusal {
            BIAS_IS_REFUSED.store(true, Ordering::Relaxed);
            tracing::warn!(%error, "biases are added after fp8 products, not with them");
        }
        match bias {
            Some(bias) => product + bias,
            None => product,
        }
    }
}
