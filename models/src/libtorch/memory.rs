//! The memory of a GPU, as the device reports it and as libtorch's allocator holds it.

use tch::Device;

use super::{LibtorchError, cuda_devices, ffi};

/// The memory of a GPU at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The bytes that neither this process nor another has allocated.
    pub free_bytes: u64,
    /// The total number of bytes.
    pub total_bytes: u64,
}

/// Returns the memory of one CUDA device.
///
/// # Errors
/// Returns an error if there is no such device, or if CUDA fails.
pub fn device_memory(device: usize) -> Result<DeviceMemory, LibtorchError> {
    if device >= cuda_devices() {
        return Err(LibtorchError(format!("there is no cuda:{device}")));
    }
    let (free_bytes, total_bytes) = ffi::memory_info(device)?;
    Ok(DeviceMemory { free_bytes, total_bytes })
}

/// The memory of a GPU that this process holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllocatedMemory {
    /// The bytes in tensors now.
    pub allocated: u64,
    /// The most bytes in tensors at once since [`reset_peak_memory`].
    pub peak: u64,
    /// The bytes taken from the device, either in tensors or kept for later ones.
    pub reserved: u64,
}

/// Returns the memory that is allocated on `device`, or `None` on a CPU, where libtorch does not count.
///
/// # Errors
/// Returns an error if libtorch has not been used on this device before.
pub fn allocated_memory(device: Device) -> Result<Option<AllocatedMemory>, LibtorchError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let [allocated, peak, reserved] = ffi::allocated_memory(index)?;
    Ok(Some(AllocatedMemory { allocated, peak, reserved }))
}

/// Releases the memory that libtorch keeps for later tensors, on all GPUs if `device` is one: loading and
/// warming up leave more of it than is needed again. The call waits for the GPUs, and later work has to
/// allocate anew. While any thread records a graph, less is released.
pub fn release_unused_memory(device: Device) {
    if device.is_cuda()
        && let Err(error) = ffi::release_memory()
    {
        tracing::debug!(%error, "unused memory is kept");
    }
}

/// Resets [`AllocatedMemory::peak`] to what is allocated now.
///
/// # Errors
/// Returns an error if libtorch has not been used on this device before.
pub fn reset_peak_memory(device: Device) -> Result<(), LibtorchError> {
    match device {
        Device::Cuda(index) => ffi::reset_peak_memory(index),
        _ => Ok(()),
    }
}
