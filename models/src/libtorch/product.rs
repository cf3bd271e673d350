//! Products of matrices by an algorithm of cuBLASLt that the caller names.

use tch::Tensor;

use super::ffi::{self, ProductAlgorithm, ProductOf};
use super::{LibtorchError, load_cuda_part};

/// Ways to compute a product into `out` [.., outputs], the most promising first, at most `most`, on the thread's current
/// GPU.
///
/// # Errors
/// When there is no CUDA, or cuBLASLt knows no way.
pub(crate) fn product_algorithms(
    product: &ProductOf<'_>,
    out: &Tensor,
    most: usize,
) -> Result<Vec<ProductAlgorithm>, LibtorchError> {
    load_cuda_part()?;
    ffi::product_algorithms(product, out, most)
}

/// Computes it, on the thread's current stream, by one of them: of tensors of the same sizes.
///
/// # Errors
/// When cuBLASLt refuses, or there is no memory for its work space.
pub(crate) fn product(
    product: &ProductOf<'_>,
    out: &Tensor,
    algorithm: &ProductAlgorithm,
) -> Result<(), LibtorchError> {
    load_cuda_part()?;
    ffi::product(product, out, algorithm)
}
