//! Vision models on libtorch: a Hugging Face snapshot in, label logits or text out.
//!
//! Knows nothing of actors, HTTP, Redis or configuration files.

mod attention;
mod beam;
mod blocks;
mod decode;
mod decode_step;
mod decoder;
mod device;
mod digest;
mod dinov3;
mod encoder;
mod error;
mod florence2;
mod fp8;
mod fused;
mod generate;
mod head;
mod jpeg;
mod layers;
pub mod libtorch;
mod linear;
mod measured;
mod memory;
mod model;
mod molmo2;
mod network;
pub mod parity;
mod part;
mod picture;
mod preprocess;
pub mod presets;
mod product;
mod replay;
mod rotary;
mod siglip2;
mod snapshot;
mod static_cache;
mod text_stream;
mod tokenizer;
mod torchscript;
mod weights;

pub use decode::{DecodeError, decode, decode_at, jpeg_size};
pub use device::{DEVICES, DTYPES, DeviceWish, device_name, dtype_name, is_device_name, set_cpu_threads};
pub use digest::{head_digest, snapshot_digest};
pub use error::{ModelError, is_out_of_memory};
pub use florence2::MODES;
pub use generate::{GenerateRequest, Generated, Generator, Region, Shape};
pub use head::{
    Epoch, FeatureKind, FeatureSet, FeatureSource, HeadKind, HeadTraining, SNAPSHOT_NOTE, TrainedHead,
    check_head_folder, head_snapshot, train_head,
};
pub use image::RgbImage;
pub use libtorch::cache_folder;
pub use memory::{MemoryEstimate, free_host_memory};
pub use model::{
    ARCHITECTURES, Architecture, Loaded, Model, ModelOptions, Placement, Scores, TaskId, TaskLabels,
    load_model, load_random,
};
pub use molmo2::Tiles;
pub use network::{Dense, Example, Goal, ImageFusion, Network, Training, train};
pub use part::{Part, PartOutput};
pub use picture::{DECODES, Picture, Scale};
pub use preprocess::{FILTERS, Pixels, Preprocessor};
pub use replay::graph_fallbacks;
pub use torchscript::{InputOptions, OUTPUTS};
