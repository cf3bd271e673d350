//! Where a model computes and in which number format, as people write it.

use tch::{Device, Kind};

use crate::ModelError;
use crate::libtorch::cuda_devices;

/// The number formats that a model may be loaded in, with their names in `ensemble.toml`.
pub const DTYPES: [(&str, Kind); 4] =
    [("fp32", Kind::Float), ("bf16", Kind::BFloat16), ("fp16", Kind::Half), ("fp8", Kind::Float8e4m3fn)];

/// What fp8 products give, and what is added to them.
pub(crate) const FP8_COMPUTED_IN: Kind = Kind::BFloat16;

/// Where a model is, and in which number format.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// CPU or one GPU.
    pub device: Device,
    /// Of weights and computation; `Float8e4m3fn` is that of products only (see [`Self::computed_in`]).
    pub kind: Kind,
}

impl Placement {
    /// The number format of everything but the products within layers, which may be of less precision.
    pub fn computed_in(&self) -> Kind {
        computed_in(self.kind)
    }
}

/// The number format of everything but products, of a model that is in `kind`.
pub(crate) fn computed_in(kind: Kind) -> Kind {
    if kind == Kind::Float8e4m3fn { FP8_COMPUTED_IN } else { kind }
}

/// What names a device, for messages.
pub const DEVICES: &str = "auto, cpu, cuda or cuda:N";

/// Whether `text` is the name of a device, existing or not.
pub fn is_device_name(text: &str) -> bool {
    matches!(text, "auto" | "cpu" | "cuda") || cuda_index(text).is_some()
}

fn cuda_index(text: &str) -> Option<usize> {
    text.strip_prefix("cuda:")?.parse().ok()
}

/// The device of that name: `auto` is the first GPU where there is one, otherwise the CPU.
///
/// # Errors
/// When the text names no device, or one that this machine lacks.
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

/// Where a model may be put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRequest {
    /// Beside the program.
    Cpu,
    /// The GPU of this number.
    Gpu(usize),
    /// Any GPU; there is one.
    AnyGpu,
}

impl DeviceRequest {
    /// What a name that [`is_device_name`] asks of this machine.
    ///
    /// # Errors
    /// When the text names no device, or one that this machine lacks.
    pub fn of(text: &str) -> Result<Self, ModelError> {
        Ok(match parse_device(text)? {
            Device::Cuda(_) if text == "auto" => Self::AnyGpu,
            Device::Cuda(index) => Self::Gpu(index),
            _ => Self::Cpu,
        })
    }
}

/// The number format of that name.
///
/// # Errors
/// When there is none.
pub(crate) fn parse_dtype(text: &str) -> Result<Kind, ModelError> {
    DTYPES.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind).ok_or_else(|| {
        ModelError::Unsupported(format!("dtype {text}: expected {}", DTYPES.map(|(name, _)| name).join(", ")))
    })
}

/// The name under which people know a device.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".to_owned(),
    }
}

/// The name under which people know a number format.
pub fn dtype_name(kind: Kind) -> &'static str {
    DTYPES.iter().find(|(_, known)| *known == kind).map_or("unknown", |(name, _)| name)
}

/// How many threads one operation on the CPU may use; 0 leaves libtorch's choice, one for each core.
pub fn set_cpu_threads(threads: usize) {
    if threads > 0 {
        tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
    }
}
