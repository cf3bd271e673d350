//! CUDA, switched on at run time where the machine has it.

use std::sync::OnceLock;

use super::{LibtorchError, ffi};

static LOADED: OnceLock<Result<(), LibtorchError>> = OnceLock::new();

/// Loads libtorch's CUDA half, once per process; call it before the first tensor is made.
///
/// # Errors
/// When there is no `libtorch_cuda.so` beside the libtorch that this program runs with, or a library
/// that it needs is missing: the program then computes on the CPU.
pub fn load_cuda() -> Result<(), LibtorchError> {
    LOADED.get_or_init(ffi::load_cuda).clone()
}

/// How many CUDA devices can be used: 0 where [`load_cuda`] fails or there is no GPU.
pub fn cuda_devices() -> usize {
    match load_cuda() {
        Ok(()) => usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        Err(_) => 0,
    }
}
