//! Runs vision models on libtorch: from a Hugging Face snapshot to label logits or text.
//!
//! Knows nothing of actors, HTTP, Redis or configuration files.

mod architectures;
mod error;
mod generation;
mod head;
mod image;
mod inspect;
mod kernels;
pub mod libtorch;
mod model;
mod nn;
mod options;
mod output;
pub mod parity;
mod runtime;
mod snapshot;
mod task;

pub use crate::image::decode::{declared_size, decode, decode_at, jpeg_size};
pub use crate::image::decoded::{DECODES, DecodedImage, Scale};
pub use crate::image::error::DecodeError;
pub use crate::image::limits::ImageLimits;
pub use crate::image::preprocess::{PixelLayout, Pixels, PreprocessLimits, Preprocessor, Tiles};
pub use ::image::RgbImage;
pub use architectures::architecture::{Architecture, Capability, Load};
pub use architectures::memory::{MemoryEstimate, free_host_memory};
pub use architectures::registry::{ARCHITECTURES, architectures_with, load_model, load_random};
pub use error::{ModelError, is_out_of_memory};
pub use generation::api::{GenerateRequest, Generated, Generator};
pub use head::{
    Epoch, FeatureDataset, FeatureKind, FeatureSource, HeadKind, HeadTraining, SNAPSHOT_NOTE, TrainedHead,
    check_head_folder, head_snapshot, train_head,
};
pub use inspect::bench_target::{BenchOutput, BenchTarget};
pub use libtorch::cache_folder;
pub use model::{LoadedModelInfo, Model};
pub use options::{
    HEADS, ModelOptions, OptionFault, OptionKind, OptionProblem, OptionSpec, OptionStep, OptionTable,
};
pub use runtime::cuda_graphs::graph_fallbacks;
pub use runtime::device::{
    DEVICES, DTYPES, DeviceRequest, Placement, device_name, dtype_name, is_device_name, set_cpu_threads,
};
pub use snapshot::digest::{head_digest, snapshot_digest};
pub use snapshot::folder::Snapshot;
pub use snapshot::presets;
pub use task::{TaskId, TaskSpec};
