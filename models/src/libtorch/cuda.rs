//! CUDA, which is switched on at run time if the machine has it.

use std::ffi::CString;
use std::io::Write;
use std::sync::OnceLock;

use super::{LibtorchError, ffi};

/// The shared object of `graph.cpp`, `kernel.cpp` and `product.cpp`; empty if the headers of CUDA were
/// missing at build time.
static PART: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/concord_cuda.so"));

static PART_LOADED: OnceLock<Result<(), LibtorchError>> = OnceLock::new();
static LOADED: OnceLock<Result<(), LibtorchError>> = OnceLock::new();

/// Loads libtorch's CUDA half, once per process. It must be called before the first tensor is created.
///
/// # Errors
/// Returns an error if there is no `libtorch_cuda.so` beside the libtorch that this program runs with, or if
/// a library that it needs is missing. The program then computes on the CPU.
pub fn load_cuda() -> Result<(), LibtorchError> {
    LOADED.get_or_init(ffi::load_cuda).clone()
}

/// Returns the number of usable CUDA devices: 0 if [`load_cuda`] fails or there is no GPU.
pub fn cuda_devices() -> usize {
    match load_cuda() {
        Ok(()) => usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        Err(_) => 0,
    }
}

/// Loads support for graphs and kernels, once per process, after CUDA.
///
/// # Errors
/// Returns an error if this was built without them, there is no CUDA, or libtorch has another version.
pub fn load_cuda_part() -> Result<(), LibtorchError> {
    PART_LOADED.get_or_init(load_part).clone()
}

/// Returns the compute capability of a CUDA device, for instance 90 for 9.0.
///
/// # Errors
/// Returns an error if there is no such device, or if [`load_cuda_part`] fails.
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
    // The dynamic loader needs a file, but not after it has loaded it.
    let mut file = tempfile::NamedTempFile::new().map_err(|error| failed(&error))?;
    file.write_all(PART).map_err(|error| failed(&error))?;
    let path = CString::new(file.path().as_os_str().as_encoded_bytes()).map_err(|error| failed(&error))?;
    ffi::load_cuda_part(&path)
}
