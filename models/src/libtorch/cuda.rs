//! CUDA, switched on at run time where the machine has it.

use std::ffi::CString;
use std::io::Write;
use std::sync::OnceLock;

use super::{LibtorchError, ffi};

/// The compiled `graph.cpp`, `kernel.cpp` and `product.cpp`; empty where the headers of CUDA were missing when this was built.
static PART: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/concord_cuda.so"));

static PART_LOADED: OnceLock<Result<(), LibtorchError>> = OnceLock::new();
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

/// Makes graphs and kernels possible, once per process, after CUDA.
///
/// # Errors
/// When this was built without them, there is no CUDA, or the libtorch is of another version.
pub fn load_cuda_part() -> Result<(), LibtorchError> {
    PART_LOADED.get_or_init(load_part).clone()
}

/// The compute capability of a CUDA device, for instance 90 for 9.0.
///
/// # Errors
/// When there is no such device, or [`load_cuda_part`] fails.
pub fn compute_capability(device: usize) -> Result<u32, LibtorchError> {
    load_cuda_part()?;
    ffi::architecture_of(device)
}

fn load_part() -> Result<(), LibtorchError> {
    load_cuda()?;
    if PART.is_empty() {
        let message = "built without CUDA graphs and kernels: the headers of CUDA were missing";
        return Err(LibtorchError(message.to_owned()));
    }
    let failed = |error: &dyn std::fmt::Display| LibtorchError(format!("CUDA graphs and kernels: {error}"));
    // The loader wants a file; what it has loaded needs none.
    let mut file = tempfile::NamedTempFile::new().map_err(|error| failed(&error))?;
    file.write_all(PART).map_err(|error| failed(&error))?;
    let path = CString::new(file.path().as_os_str().as_encoded_bytes()).map_err(|error| failed(&error))?;
    ffi::load_cuda_part(&path)
}
