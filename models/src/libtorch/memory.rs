//! What libtorch's allocator holds on a GPU.

use tch::Device;

use super::{LibtorchError, ffi};

/// Bytes on one GPU, of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceMemory {
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
pub fn device_memory(device: Device) -> Result<Option<DeviceMemory>, LibtorchError> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let [allocated, peak, reserved] = ffi::device_memory(index)?;
    Ok(Some(DeviceMemory { allocated, peak, reserved }))
}

/// Lets [`DeviceMemory::peak`] begin anew at what is allocated now.
///
/// # Errors
/// When libtorch was not used on this device before.
pub fn reset_peak_memory(device: Device) -> Result<(), LibtorchError> {
    match device {
        Device::Cuda(index) => ffi::reset_peak_memory(index),
        _ => Ok(()),
    }
}
