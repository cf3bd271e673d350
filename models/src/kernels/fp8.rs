//! Products of matrices in fp8 (e4m3): weights quantised once, what they are multiplied with each time, with one scale a
//! row on both sides.
//!
//! Micikevicius et al., "FP8 Formats for Deep Learning", 2022 (arXiv 2209.05433).

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Kind, Tensor};

use crate::kernels::step::RowWeights;
use crate::runtime::device::FP8_COMPUTED_IN;

/// The greatest value of e4m3, which the greatest one of a row becomes.
const LARGEST: f64 = 448.0;
/// Rows of nothing but zeros have a scale too.
const ROW_MAX_MIN: f64 = 1e-12;
/// Tensor cores take whole packs of so many values.
const MULTIPLE: i64 = 16;
/// Sums of a few products each are rounded to fewer bits than fp32 has: Hopper is half as fast otherwise.
const ADDS_UP_FAST: bool = true;

/// How many bytes weights of this shape take.
pub(crate) fn weight_bytes(shape: &[i64]) -> u64 {
    let values: i64 = shape.iter().product();
    let scales = shape.first().copied().unwrap_or(0) * Kind::Float.elt_size_in_bytes() as i64;
    u64::try_from(values + scales).unwrap_or(0)
}

/// Whether tensor cores take weights of this shape.
pub(crate) fn fits(shape: &[i64]) -> bool {
    shape.len() == 2 && shape.iter().all(|side| *side > 0 && side % MULTIPLE == 0)
}

/// Whether libtorch's products take no bias here: cuBLAS does not say before it is asked.
static BIAS_IS_REFUSED: AtomicBool = AtomicBool::new(false);

/// Rows of fp8 values.
#[derive(Debug)]
pub(crate) struct Fp8Rows {
    /// [.., width], contiguous.
    pub(crate) values: Tensor,
    /// What a row's values are to be multiplied by, [rows, 1] in fp32.
    pub(crate) scales: Tensor,
}

impl Fp8Rows {
    /// Of [.., width], by libtorch's own operations.
    pub(crate) fn of(x: &Tensor) -> Self {
        let wide = x.to_kind(Kind::Float).flatten(0, -2);
        let largest = wide.abs().amax([-1].as_slice(), true).clamp_min(ROW_MAX_MIN);
        let values = (wide * (largest.reciprocal() * LARGEST)).clamp(-LARGEST, LARGEST);
        Self {
            values: values.to_kind(Kind::Float8e4m3fn).view(x.size().as_slice()),
            // CUDA divides by a constant so.
            scales: largest * LARGEST.recip(),
        }
    }

    /// What the rows stand for, in fp32.
    pub(crate) fn widened(&self) -> Tensor {
        let size = self.values.size();
        (self.values.to_kind(Kind::Float).flatten(0, -2) * &self.scales).view(size.as_slice())
    }
}

/// Weights [outputs, inputs] of fp8 rows.
#[derive(Debug)]
pub(crate) struct Fp8Weights(Fp8Rows);

impl Fp8Weights {
    /// Of weights [outputs, inputs]; `None` where tensor cores do not take these sizes.
    pub(crate) fn of(weights: &Tensor) -> Option<Self> {
        fits(&weights.size()).then(|| Self(Fp8Rows::of(weights)))
    }

    pub(crate) fn outputs(&self) -> i64 {
        self.0.values.size()[0]
    }

    /// What a single row is multiplied by: it stays in bf16.
    pub(crate) fn row_weights(&self) -> RowWeights<'_> {
        RowWeights { values: &self.0.values, scales: Some(&self.0.scales), bias: None }
    }

    /// What the weights stand for, in fp32.
    #[cfg(test)]
    pub(crate) fn widened(&self) -> Tensor {
        self.0.widened()
    }

    /// x · weightsᵀ + bias, [.., outputs] in bf16.
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
        // A refusal for want of memory ends here: it says nothing of biases.
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
