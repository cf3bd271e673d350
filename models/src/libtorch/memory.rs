//! The memory of a GPU: what the device has, and what libtorch's allocator holds of it.

use tch::Device;

use super::{LibtorchError, cuda_devices, ffi};

/// The memory of a GPU at one moment, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What nobody has, neither this process nor another.
    pub free_bytes: u64,
    /// All.
    pub total_bytes: u64,
}

/// The memory of one CUDA device.
///
/// # Errors
/// When there is no such device, or CUDA does not say.
pub fn device_memory(device: usize) -> Result<DeviceMemory, LibtorchError> {
    if device >= cuda_devices() {
        return Err(LibtorchError(format!("there is no cuda:{device}")));
    }
    let (free_bytes, total_bytes) = ffi::memory_info(device)?;
    Ok(DeviceMemory { free_bytes, total_bytes })
}

/// What this process has of a GPU's memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllocatedMemory {
    /// In tensors now.
    pub allocated: u64,
    /// The most that was in tensors at once since [`reset_peak_memory`].
    pub peak: u64,
    /// Taken from the device, in tensors or kept for later ones.
    pub reserved: u64,
}

/// What is allocated on `device`; nothing on a CPU, where libtorch does not count.
///
/// # Errors
/// When libtorch was not used on this device before.
pub fn allocated_memory(device: Device) -> Result<Option<AllocatedMemory>, LibtorchError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let [allocated, peak, reserved] = ffi::allocated_memory(index)?;
    Ok(Some(AllocatedMemory { allocated, peak, reserved }))
}

/// Gives back to all GPUs, where `device` is one, what libtorch keeps for later tensors: of loading and of warming up, more
/// than is needed again. It waits for them, and what comes next takes memory anew. While a graph is being recorded, by
/// whatever thread, less is given back.
pub fn release_unused_memory(device: Device) {
    if device.is_cuda()
        && let Err(error) = ffi::release_memory()
    {
        tracing::debug!(%error, "unused memory is kept");
    }
}

/// Lets [`AllocatedMemory::peak`] begin anew at what is allocated now.
///
/// # Errors
/// When libtorch was not used on this device before.
pub fn reset_peak_memory(device: Device) -> Result<(), LibtorchError> {
    match device {
        Device::Cuda(index) => ffi::reset_peak_memory(index),
        _ => Ok(()),
    }
}
