//! Matrix products by an algorithm of cuBLASLt that the caller chooses.

use tch::Tensor;

use super::ffi::{self, ProductAlgorithm, ProductOf};
use super::{LibtorchError, load_cuda_part};

/// Returns at most `most` algorithms that compute a product into `out` [.., outputs] on the thread's current
/// GPU, the most promising first.
///
/// # Errors
/// Returns an error if there is no CUDA, or if cuBLASLt knows no algorithm.
pub(crate) fn product_algorithms(
    product: &ProductOf<'_>,
    out: &Tensor,
    most: usize,
) -> Result<Vec<ProductAlgorithm>, LibtorchError> {
    load_cuda_part()?;
    ffi::product_algorithms(product, out, most)
}

/// Computes a product into `out` [.., outputs] on the thread's current stream, by an algorithm for tensors of
/// the same sizes.
///
/// # Errors
/// Returns an error if cuBLASLt fails, or if there is no memory for its workspace.
pub(crate) fn product(
    product: &ProductOf<'_>,
    out: &Tensor,
    algorithm: &ProductAlgorithm,
) -> Result<(), LibtorchError> {
    load_cuda_part()?;
    ffi::product(product, out, algorithm)
}
