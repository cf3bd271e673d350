//! The parts of libtorch that tch lacks: CUDA loaded at run time; its memory, streams, events and graphs as
//! safe types; attention by a given back end, and products by a given algorithm; knows nothing else of
//! Concord.
//!
//! This is the only module of Concord with `unsafe` code.

mod cuda;
mod ffi;
mod graph;
mod kernel;
mod memory;
mod pinned;
mod product;
mod stream;

pub use cuda::{compute_capability, cuda_devices, load_cuda, load_cuda_part};
pub(crate) use ffi::{KernelLaunch, ProductAlgorithm, ProductOf};
pub(crate) use ffi::{cudnn_attention, efficient_attention, flash_attention};
pub use graph::Graph;
pub use kernel::cache_folder;
pub(crate) use kernel::{Argument, Kernel, compile, multiprocessors};
pub use memory::{
    AllocatedMemory, DeviceMemory, allocated_memory, device_memory, release_unused_memory, reset_peak_memory,
};
pub(crate) use pinned::pinned;
pub(crate) use product::{product, product_algorithms};
pub use stream::{CurrentStream, Event, Stream};

/// The message of libtorch when a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct LibtorchError(pub(crate) String);
