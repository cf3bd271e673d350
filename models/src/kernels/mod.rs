//! Fused kernels for the operations between the matrix products of a transformer, each in one pass over
//! memory on a GPU; knows no layer and no model.
//!
//! Each operation has an eager twin of libtorch's own operations. It runs on the CPU, where the kernels are
//! not available, and for shapes that they do not support. Results differ by rounding: the kernels round
//! once, the twins after every operation.

pub(crate) mod fp8;
mod loaded;
pub(crate) mod norm;
mod quantise;
pub(crate) mod step;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::LazyLock;

use tch::{Kind, Tensor};

use crate::libtorch::{Argument, Kernel, KernelLaunch, LibtorchError};
use fp8::Fp8Rows;
use loaded::{PerDevice, compile_for};
pub(crate) use norm::{LayerNorm, Norm, RmsNorm};
pub(crate) use quantise::{Prologue, add_norm_quantised, quantised};

const SOURCE: &str = include_str!("fused.cu");
/// The number of bytes that a kernel's thread loads at once.
const PACK_BYTES: i64 = 16;
/// The largest number of threads of a block.
const THREADS_MAX: i64 = 1024;
/// The threads of a block, for kernels that go over all values in a grid-stride loop.
const BLOCK_THREADS: i64 = 256;
/// The largest number of blocks, enough to fill any GPU several times.
const BLOCKS_MAX: i64 = 1 << 16;

/// The kernels of one GPU and number format.
#[derive(Debug, Clone, Copy)]
struct Kernels {
    add_norm: Kernel,
    rotate: Kernel,
    norm_rotate: Kernel,
    gelu: Kernel,
    silu_gated: Kernel,
    quantise: Kernel,
}

impl Kernels {
    fn load(kind: Kind) -> Result<Self, LibtorchError> {
        let code = compile_for(kind, SOURCE)?;
        let kernel = |name| Kernel::load(&code, name);
        Ok(Self {
            add_norm: kernel("add_norm")?,
            rotate: kernel("rotate")?,
            norm_rotate: kernel("norm_rotate")?,
            gelu: kernel("gelu")?,
            silu_gated: kernel("silu_gated")?,
            quantise: kernel("quantise")?,
        })
    }
}

static LOADED: LazyLock<PerDevice<Kernels>> = LazyLock::new(PerDevice::default);

/// Returns the kernels for tensors like this one. The first call compiles them, and must not be part of a
/// graph's recording.
fn kernels(like: &Tensor) -> Option<Kernels> {
    LOADED.get(like, Kernels::load)
}

/// Returns whether a row of `width` values is a whole number of packs.
fn in_packs(width: i64, kind: Kind) -> bool {
    (width * kind.elt_size_in_bytes() as i64) % PACK_BYTES == 0
}

/// Returns the number of values in a pack.
fn pack(kind: Kind) -> i64 {
    PACK_BYTES / kind.elt_size_in_bytes() as i64
}

fn small(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Returns a launch of this many blocks with this many threads each.
fn grid(blocks: i64, threads: i64) -> KernelLaunch {
    KernelLaunch { blocks: small(blocks), threads: small(threads), ..KernelLaunch::default() }
}

fn int(value: i64) -> Argument<'static> {
    Argument::Int(i32::try_from(value).unwrap_or(i32::MAX))
}

/// Computes residual + x · scale, and the norm of it; `scale` is \[width\], the others are [.., width].
pub(crate) fn add_norm(
    residual: &Tensor,
    x: &Tensor,
    scale: Option<&Tensor>,
    norm: Norm<'_>,
) -> (Tensor, Tensor) {
    let x = &x.contiguous();
    let normed = x.empty_like();
    if let Some(sum) = launch_add_norm(residual, x, scale, norm, NormedTo::Values(&normed)) {
        return (sum, normed);
    }
    let sum = match scale {
        Some(scale) => residual + x * scale,
        None => residual + x,
    };
    let normed = norm.forward(&sum);
    (sum, normed)
}

/// The contiguous tensors into which a kernel writes the normalized values.
#[derive(Debug, Clone, Copy)]
enum NormedTo<'a> {
    Values(&'a Tensor),
    Fp8(&'a Fp8Rows),
}

/// Computes the sum of [`add_norm`] by its kernel, which writes the norm as well; returns `None` if it
/// cannot.
fn launch_add_norm(
    residual: &Tensor,
    x: &Tensor,
    scale: Option<&Tensor>,
    norm: Norm<'_>,
    normed: NormedTo<'_>,
) -> Option<Tensor> {
    let width = x.size()[x.dim() - 1];
    let fits = in_packs(width, x.kind()) && width / pack(x.kind()) <= THREADS_MAX;
    let kernels = kernels(x).filter(|_| fits)?;
    let (residual, x) = (residual.contiguous(), x.contiguous());
    let sum = x.empty_like();
    let (weight, bias, eps, centred) = norm.parts();
    let (values, fp8) = match normed {
        NormedTo::Values(values) => (Some(values), None),
        NormedTo::Fp8(rows) => (None, Some(rows)),
    };
    let arguments = [
        Argument::Tensor(Some(&residual)),
        Argument::Tensor(Some(&x)),
        Argument::Tensor(scale),
        Argument::Tensor(Some(weight)),
        Argument::Tensor(bias),
        Argument::Tensor(Some(&sum)),
        Argument::Tensor(values),
        Argument::Tensor(fp8.map(|rows| &rows.values)),
        Argument::Tensor(fp8.map(|rows| &rows.scales)),
        int(width),
        Argument::Float(eps as f32),
        int(i64::from(centred)),
    ];
    let rows = x.numel() as i64 / width;
    let threads = (width / pack(x.kind()) + 31) / 32 * 32;
    kernels.add_norm.launch(grid(rows, threads), &arguments).is_ok().then_some(sum)
}

/// Rotates the first `heads` heads of contiguous rows [batch, tokens, values] in place. Cosines and sines are
/// those of the last tokens, [positions, head width]; the tokens before those stay as they are.
pub(crate) fn rotate(rows: &Tensor, heads: i64, (cos, sin): (&Tensor, &Tensor)) {
    let (size, angles) = (rows.size(), cos.size());
    let (positions, width) = (angles[0], angles[1]);
    let (batch, tokens, stride) = (size[0], size[1], size[2]);
    let fits = in_packs(width / 2, rows.kind()) && in_packs(stride, rows.kind()) && width % 2 == 0;
    if let Some(kernels) = kernels(rows).filter(|_| fits) {
        let threads = (heads * width / 2 / pack(rows.kind())).clamp(32, THREADS_MAX);
        let arguments = [
            Argument::Tensor(Some(rows)),
            Argument::Tensor(Some(cos)),
            Argument::Tensor(Some(sin)),
            int(tokens),
            int(tokens - positions),
            int(stride),
            int(heads),
            int(width),
        ];
        if kernels.rotate.launch(grid(batch * positions, threads), &arguments).is_ok() {
            return;
        }
    }
    let part = rows.narrow(1, tokens - positions, positions).narrow(2, 0, heads * width);
    let by_head = part.view([batch, positions, heads, width]);
    let turned = rotate_eagerly(&by_head.transpose(1, 2), cos, sin).transpose(1, 2);
    by_head.shallow_clone().copy_(&turned);
}

/// Computes `x` · cos + (the halves of `x` exchanged, the new first one negated) · sin, as `rotate_half` in
/// transformers does; the last two dimensions are [positions, width].
pub(crate) fn rotate_eagerly(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let halves = x.chunk(2, -1);
    let turned = Tensor::cat(&[&-&halves[1], &halves[0]], -1);
    x * cos + turned * sin
}

/// Applies an RMS norm and the rotation to each head of queries and keys, in place in contiguous rows [batch,
/// tokens, values]. The rows begin with the heads of queries, followed by those of keys. Cosines and sines
/// are [tokens, head width].
pub(crate) fn norm_rotate(
    rows: &Tensor,
    [queries, keys]: [i64; 2],
    [query_norm, key_norm]: [&RmsNorm; 2],
    (cos, sin): (&Tensor, &Tensor),
) {
    let (size, width) = (rows.size(), cos.size()[1]);
    let (heads, lanes) = (queries + keys, width / pack(rows.kind()));
    let is_power = (2..=32).contains(&lanes) && lanes & (lanes - 1) == 0;
    let fits = in_packs(width, rows.kind()) && in_packs(size[2], rows.kind()) && is_power;
    if let Some(kernels) = kernels(rows).filter(|_| fits && query_norm.eps == key_norm.eps) {
        let all_heads = size[0] * size[1] * heads;
        let blocks = (all_heads * lanes + BLOCK_THREADS - 1) / BLOCK_THREADS;
        let arguments = [
            Argument::Tensor(Some(rows)),
            Argument::Tensor(Some(&query_norm.weight)),
            Argument::Tensor(Some(&key_norm.weight)),
            Argument::Tensor(Some(cos)),
            Argument::Tensor(Some(sin)),
            Argument::Long(all_heads),
            int(size[1]),
            int(size[2]),
            int(queries),
            int(heads),
            int(width),
            Argument::Float(query_norm.eps as f32),
        ];
        if kernels.norm_rotate.launch(grid(blocks, BLOCK_THREADS), &arguments).is_ok() {
            return;
        }
    }
    for (start, heads, norm) in [(0, queries, query_norm), (queries, keys, key_norm)] {
        let part = rows.narrow(2, start * width, heads * width).unflatten(2, [heads, width]);
        let normed = norm.forward(&part).flatten(2, 3);
        rotate(&normed, heads, (cos, sin));
        part.shallow_clone().copy_(&normed.unflatten(2, [heads, width]));
    }
}

/// The form of Φ, the cumulative distribution function of the normal distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gelu {
    /// The error function.
    Exact,
    /// An approximation by a hyperbolic tangent (Hendrycks and Gimpel, arXiv 1606.08415).
    Tanh,
}

/// Computes x · Φ(x). Consumes `x`, since the result may be in the same memory.
pub(crate) fn gelu(x: Tensor, form: Gelu) -> Tensor {
    let count = x.numel() as i64;
    if let Some(kernels) = kernels(&x).filter(|_| in_packs(count, x.kind()) && x.is_contiguous()) {
        let packs = count / pack(x.kind());
        let blocks = ((packs + BLOCK_THREADS - 1) / BLOCK_THREADS).clamp(1, BLOCKS_MAX);
        let is_tanh = i64::from(form == Gelu::Tanh);
        let arguments = [Argument::Tensor(Some(&x)), Argument::Long(packs), int(is_tanh)];
        if kernels.gelu.launch(grid(blocks, BLOCK_THREADS), &arguments).is_ok() {
            return x;
        }
    }
    x.gelu(if form == Gelu::Tanh { "tanh" } else { "none" })
}

/// Computes silu(gate) · up for rows [.., up and gate]; the result is half as wide.
pub(crate) fn silu_gated(rows: &Tensor) -> Tensor {
    let width = rows.size()[rows.dim() - 1];
    let inner = width / 2;
    if let Some(kernels) = kernels(rows).filter(|_| in_packs(inner, rows.kind())) {
        let rows = rows.contiguous();
        let mut size = rows.size();
        if let Some(last) = size.last_mut() {
            *last = inner;
        }
        let out = Tensor::empty(size, (rows.kind(), rows.device()));
        let packs = out.numel() as i64 / pack(rows.kind());
        let blocks = ((packs + BLOCK_THREADS - 1) / BLOCK_THREADS).clamp(1, BLOCKS_MAX);
        let arguments =
            [Argument::Tensor(Some(&rows)), Argument::Tensor(Some(&out)), int(inner), Argument::Long(packs)];
        if kernels.silu_gated.launch(grid(blocks, BLOCK_THREADS), &arguments).is_ok() {
            return out;
        }
    }
    let halves = rows.chunk(2, -1);
    halves[1].silu() * &halves[0]
}
