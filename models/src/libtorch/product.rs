//! Products of matrices by an algorithm of cuBLASLt that the caller names.

use tch::Tensor;

use super::ffi::{self, ProductAlgorithm};
use super::{LibtorchError, load_cuda_part};

/// Ways to compute `x` [.., inputs] · `weights` [outputs, inputs] transposed + `bias` \[outputs\] into `out`
/// [.., outputs], the most promising first, at most `most`: of contiguous tensors in bf16 or fp16, on the thread's
/// current GPU.
///
/// # Errors
/// When there is no CUDA, or cuBLASLt knows no way.
pub(crate) fn product_algorithms(
    x: &Tensor,
    weights: &Tensor,
    bias: Option<&Tensor>,
    out: &Tensor,
    most: usize,
) -> Result<Vec<ProductAlgorithm>, LibtorchError> {
    load_cuda_part()?;
    ffi::product_algorithms(x, weights, bias, out, most)
}

/// Computes it, on the thread's current stream, by one of them: of tensors of the same sizes.
///
/// # Errors
/// When cuBLASLt refuses, or there is no memory for its work space.
pub(crate) fn product(
    x: &Tensor,
    weights: &Tensor,
    bias: Option<&Tensor>,
    out: &Tensor,
    algorithm: &ProductAlgorithm,
) -> Result<(), LibtorchError> {
    load_cuda_part()?;
    ffi::product(x, weights, bias, out, algorithm)
}
