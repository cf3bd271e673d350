//! Pinned memory of the host, from which a GPU copies by itself while the CPU does something else.

use tch::{Device, Tensor};

use super::{LibtorchError, ffi};

/// Copies `bytes` into a tensor of this shape, in page-locked memory if `device` is a GPU, otherwise in
/// ordinary memory.
///
/// libtorch keeps page-locked memory for the next use: its size is rounded up to a power of two, and it is
/// never released. An asynchronous copy to the device may outlive the tensor: libtorch waits for it before
/// the memory is used again.
///
/// # Errors
/// Returns an error if the shape has another size than `bytes`, or if there is no memory.
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
