//! Memory of the host that a GPU copies from by itself, while the CPU does something else.

use tch::{Device, Tensor};

use super::{LibtorchError, ffi};

/// A copy of `bytes`, of this shape, in page-locked memory where `device` is a GPU, otherwise in common memory.
///
/// libtorch keeps such memory for the next use: it is rounded up to powers of two and never given back. A copy to the
/// device that does not wait may outlive the tensor: libtorch waits with the next use of its memory.
///
/// # Errors
/// When the shape is of another size, or there is no memory.
pub(crate) fn pinned(bytes: &[u8], shape: &[i64], device: Device) -> Result<Tensor, LibtorchError> {
    if shape.iter().product::<i64>() != bytes.len() as i64 {
        return Err(LibtorchError(format!("{} bytes are not of shape {shape:?}", bytes.len())));
    }
    let copied = match device {
        Device::Cuda(_) => ffi::page_locked_copy(bytes, shape, device),
        _ => Tensor::f_from_slice(bytes).and_then(|tensor| tensor.f_view(shape)),
    };
    copied.map_err(|error| LibtorchError(error.to_string().lines().next().unwrap_or_default().to_owned()))
}
