//! Quantization to fp8, by itself or in one pass with the operation before it.

use tch::{Device, Kind, Tensor};

use super::{
    Gelu, Norm, NormedTo, THREADS_MAX, add_norm, gelu, grid, in_packs, int, kernels, launch_add_norm, pack,
};
use crate::kernels::fp8::Fp8Rows;
use crate::libtorch::Argument;

/// The number of packs of a row that a kernel's thread keeps in registers.
const KEPT_PACKS: i64 = 4;

/// The operation that is applied to values before they are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prologue {
    Nothing,
    Gelu(Gelu),
}

impl Prologue {
    /// Returns the number by which the kernel knows the operation.
    fn number(self) -> i64 {
        match self {
            Self::Nothing => 0,
            Self::Gelu(Gelu::Exact) => 1,
            Self::Gelu(Gelu::Tanh) => 2,
        }
    }
}

/// Allocates rows that a kernel will write.
fn empty_rows(size: &[i64], device: Device) -> Fp8Rows {
    let rows: i64 = size.iter().rev().skip(1).product();
    Fp8Rows {
        values: Tensor::empty(size, (Kind::Float8e4m3fn, device)),
        scales: Tensor::empty([rows, 1], (Kind::Float, device)),
    }
}

/// Quantizes rows [.., width] to fp8, after the operation `before`. Consumes `x`, since it may be
/// overwritten.
pub(crate) fn quantised(x: Tensor, before: Prologue) -> Fp8Rows {
    if let Some(rows) = launch(&x, before) {
        return rows;
    }
    Fp8Rows::of(&match before {
        Prologue::Nothing => x,
        Prologue::Gelu(form) => gelu(x, form),
    })
}

/// Quantizes by the kernel; returns `None` if it cannot.
fn launch(x: &Tensor, before: Prologue) -> Option<Fp8Rows> {
    let size = x.size();
    let width = *size.last()?;
    let packs = width / pack(x.kind());
    let fits = in_packs(width, x.kind()) && (1..=THREADS_MAX * KEPT_PACKS).contains(&packs);
    let kernels = kernels(x).filter(|_| fits)?;
    let (x, out) = (x.contiguous(), empty_rows(&size, x.device()));
    let arguments = [
        Argument::Tensor(Some(&x)),
        Argument::Tensor(Some(&out.values)),
        Argument::Tensor(Some(&out.scales)),
        int(width),
        int(before.number()),
    ];
    let threads = ((packs + 31) / 32 * 32).min(THREADS_MAX);
    let rows = out.scales.numel() as i64;
    kernels.quantise.launch(grid(rows, threads), &arguments).is_ok().then_some(out)
}

/// Computes [`add_norm`] with a quantized norm.
pub(crate) fn add_norm_quantised(
    residual: &Tensor,
    x: &Tensor,
    scale: Option<&Tensor>,
    norm: Norm<'_>,
) -> (Tensor, Fp8Rows) {
    let normed = empty_rows(&x.size(), x.device());
    if let Some(sum) = launch_add_norm(residual, x, scale, norm, NormedTo::Fp8(&normed)) {
        return (sum, normed);
    }
    let (sum, normed) = add_norm(residual, x, scale, norm);
    (sum, quantised(normed, Prologue::Nothing))
}
