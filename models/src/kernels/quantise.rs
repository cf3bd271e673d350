//! Quantisation to fp8, by itself or in one pass with what comes before it.

use tch::{Device, Kind, Tensor};

use super::{
    Gelu, Norm, NormedTo, THREADS_MAX, add_norm, gelu, grid, in_packs, int, kernels, launch_add_norm, pack,
};
use crate::kernels::fp8::Fp8Rows;
use crate::libtorch::Argument;

/// A kernel's thread keeps so many packs of its row.
const KEPT_PACKS: i64 = 4;

/// What is done to values before they are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prologue {
    Nothing,
    Gelu(Gelu),
}

impl Prologue {
    /// As the kernel knows it.
    fn number(self) -> i64 {
        match self {
            Self::Nothing => 0,
            Self::Gelu(Gelu::Exact) => 1,
            Self::Gelu(Gelu::Tanh) => 2,
        }
    }
}

/// Memory for rows that a kernel will write.
fn empty_rows(size: &[i64], device: Device) -> Fp8Rows {
    let rows: i64 = size.iter().rev().skip(1).product();
    Fp8Rows {
        values: Tensor::empty(size, (Kind::Float8e4m3fn, device)),
        scales: Tensor::empty([rows, 1], (Kind::Float, device)),
    }
}

/// Rows [.., width] as fp8, after what comes before; nothing else needs `x` any more.
pub(crate) fn quantised(x: Tensor, before: Prologue) -> Fp8Rows {
    if let Some(rows) = launch(&x, before) {
        return rows;
    }
    Fp8Rows::of(&match before {
        Prologue::Nothing => x,
        Prologue::Gelu(form) => gelu(x, form),
    })
}

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

/// [`add_norm`] whose norm is quantised.
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
