//! What tch lacks of libtorch: CUDA loaded at run time, its free memory, streams and events as safe types.
//!
//! The only module of Concord with `unsafe` code.

mod cuda;
mod ffi;
mod stream;

pub use cuda::{DeviceMemory, cuda_devices, cuda_memory, load_cuda};
pub use stream::{CurrentStream, Event, Stream};

/// What libtorch said when a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct LibtorchError(pub(crate) String);
