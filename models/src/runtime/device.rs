//! Devices and number formats, and their names in the configuration.

use tch::{Device, Kind};

use crate::ModelError;
use crate::libtorch::cuda_devices;

/// The number formats that a model may be loaded in, with their names in `ensemble.toml`.
pub const DTYPES: [(&str, Kind); 4] =
    [("fp32", Kind::Float), ("bf16", Kind::BFloat16), ("fp16", Kind::Half), ("fp8", Kind::Float8e4m3fn)];

/// The number format of the results of fp8 products, and of what is added to them.
pub(crate) const FP8_COMPUTED_IN: Kind = Kind::BFloat16;

/// The device and number format of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The CPU or one GPU.
    pub device: Device,
    /// The number format of weights and computation; `Float8e4m3fn` is that of products only (see
    /// [`Self::computed_in`]).
    pub kind: Kind,
}

impl Placement {
    /// Returns the number format of everything but the products within layers, which may have less precision.
    pub fn computed_in(&self) -> Kind {
        computed_in(self.kind)
    }
}

/// Returns the number format of everything but products, for a model that is loaded in `kind`.
pub(crate) fn computed_in(kind: Kind) -> Kind {
    if kind == Kind::Float8e4m3fn { FP8_COMPUTED_IN } else { kind }
}

/// The names of devices, for messages.
pub const DEVICES: &str = "auto, cpu, cuda or cuda:N";

/// Returns whether `text` is the name of a device, existing or not.
pub fn is_device_name(text: &str) -> bool {
    matches!(text, "auto" | "cpu" | "cuda") || cuda_index(text).is_some()
}

fn cuda_index(text: &str) -> Option<usize> {
    text.strip_prefix("cuda:")?.parse().ok()
}

/// Returns the device with that name: `auto` is the first GPU if there is one, otherwise the CPU.
///
/// # Errors
/// Returns an error if the text names no device, or one that this machine lacks.
pub(crate) fn parse_device(text: &str) -> Result<Device, ModelError> {
    let refuse = |message: String| ModelError::Device { device: text.to_owned(), message };
    let index = match text {
        "cpu" => return Ok(Device::Cpu),
        "auto" if cuda_devices() == 0 => return Ok(Device::Cpu),
        "auto" | "cuda" => 0,
        _ => cuda_index(text).ok_or_else(|| refuse(format!("expected {DEVICES}")))?,
    };
    match cuda_devices() {
        0 => match crate::libtorch::load_cuda() {
            Ok(()) => Err(refuse("this machine has no usable CUDA device".to_owned())),
            Err(error) => Err(refuse(format!("CUDA is not available ({error})"))),
        },
        devices if index >= devices => {
            Err(refuse(format!("this machine has {devices} CUDA device(s), from cuda:0")))
        }
        _ => Ok(Device::Cuda(index)),
    }
}

/// The devices on which a model may be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRequest {
    /// The CPU.
    Cpu,
    /// The GPU with this index.
    Gpu(usize),
    /// Any GPU; there is at least one.
    AnyGpu,
}

impl DeviceRequest {
    /// Returns the devices of this machine that a name asks for (see [`is_device_name`]).
    ///
    /// # Errors
    /// Returns an error if the text names no device, or one that this machine lacks.
    pub fn of(text: &str) -> Result<Self, ModelError> {
        Ok(match parse_device(text)? {
            Device::Cuda(_) if text == "auto" => Self::AnyGpu,
            Device::Cuda(index) => Self::Gpu(index),
            _ => Self::Cpu,
        })
    }
}

/// Returns the number format with that name.
///
/// # Errors
/// Returns an error if there is none.
pub(crate) fn parse_dtype(text: &str) -> Result<Kind, ModelError> {
    DTYPES.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind).ok_or_else(|| {
        ModelError::Unsupported(format!("dtype {text}: expected {}", DTYPES.map(|(name, _)| name).join(", ")))
    })
}

/// Returns the name of a device as the configuration writes it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// Returns the name of a number format as the configuration writes it.
pub fn dtype_name(kind: Kind) -> &'static str {
    DTYPES.iter().find(|(_, known)| *known == kind).map_or("unknown", |(name, _)| name)
}

/// Sets the number of threads that one operation on the CPU may use; 0 keeps libtorch's default, one for each
/// core.
pub fn set_cpu_threads(threads: usize) {
    if threads > 0 {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}
