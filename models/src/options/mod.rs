//! Defines `[models.NAME]` of `ensemble.toml`: the snapshot of a model, and how it runs. Knows no
//! architecture: each describes its own options.

mod heads;
mod spec;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::image::decoded::DECODES;
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::runtime::device::Placement;

pub use heads::HEADS;
pub(crate) use heads::MC_DROPOUT_PASSES;
pub use spec::{OptionFault, OptionKind, OptionProblem, OptionSpec, OptionStep, OptionTable};

/// The section `[models.NAME]` of `ensemble.toml`: a snapshot, and how to run it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ModelOptions {
    /// The implementation that loads the snapshot: the name of one of
    /// [`ARCHITECTURES`](crate::ARCHITECTURES).
    pub architecture: String,
    /// The Hugging Face snapshot's folder, relative to the folder of `ensemble.toml`; or `random:PRESET` for
    /// benchmarks: random weights at published sizes, see [`PRESETS`](crate::snapshot::presets::PRESETS).
    pub snapshot: PathBuf,
    /// The device: `auto` (spread over the GPUs, or the CPU if there are none), `cpu`, `cuda` (the first GPU)
    /// or `cuda:N`.
    pub device: String,
    /// The number format: `fp32`, `bf16` or `fp16`, which the weights are converted to and computed in; or
    /// `fp8`, which is bf16 except for the matrix products within the layers of image towers and of Molmo2's
    /// text model.
    pub dtype: String,
    /// The decoding mode, one of [`DECODES`]: `exact` (every pixel of the image, as the reference
    /// implementation decodes it) or `fast` (a JPEG at an eighth to a half of both sides, where that still
    /// covers the model's own input size).
    pub decode: String,
    /// True if forward passes are replayed from CUDA graphs, where the model is on a GPU.
    pub graphs: bool,
    /// The batch sizes that batches are padded to for their graphs, ascending; if empty, powers of two.
    /// Batches above the last one run without a graph.
    pub graph_batches: Vec<usize>,
    /// The options that only this architecture takes, with the values of the configuration.
    #[serde(skip)]
    pub own: OptionTable,
    /// The most images that run together.
    pub max_batch: usize,
    /// The time in milliseconds that the first image of a batch waits for others that are on their way; 0 for
    /// no wait.
    pub max_delay_ms: u64,
    /// The number of images that may wait for a replica or run in it; further ones are refused at once.
    pub queue_capacity: usize,
    /// The number of copies of the model that are loaded, each with its own thread, stream and queue. On the
    /// CPU they share the cores.
    pub replicas: usize,
    /// The time in seconds after an out-of-memory batch until a replica tries batches of twice the size
    /// again.
    pub batch_recovery_s: u64,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            architecture: String::new(),
            snapshot: PathBuf::new(),
            device: "auto".to_owned(),
            dtype: "fp32".to_owned(),
            decode: DECODES[0].to_owned(),
            graphs: true,
            graph_batches: Vec::new(),
            own: OptionTable::default(),
            max_batch: 32,
            max_delay_ms: 2,
            queue_capacity: 256,
            replicas: 1,
            batch_recovery_s: 60,
        }
    }
}

impl ModelOptions {
    /// Returns whether JPEGs are decoded no larger than the model needs.
    pub fn decodes_fast(&self) -> bool {
        self.decode == DECODES[1]
    }

    /// Returns the files of its trained heads, by task.
    pub fn heads(&self) -> BTreeMap<String, PathBuf> {
        self.own.task_files(&HEADS)
    }

    /// Returns the file of the trained head for a task, relative to the snapshot's folder.
    pub fn head(&self, task: &str) -> Option<PathBuf> {
        self.heads().remove(task)
    }

    /// Returns the number of passes of a head with dropout on each image; 0 for one pass without dropout.
    pub fn mc_dropout_passes(&self) -> usize {
        usize::try_from(self.own.whole(&MC_DROPOUT_PASSES)).unwrap_or(usize::MAX)
    }

    /// Returns whether the two differ in nothing but the trained heads.
    pub fn is_same_but_for_heads(&self, other: &Self) -> bool {
        *self == Self { own: other.own.with_files_of(&self.own, &HEADS), ..other.clone() }
    }

    /// Returns whether a model at `place` uses CUDA graphs.
    pub(crate) fn has_graphs(&self, place: Placement) -> bool {
        self.graphs && place.device.is_cuda()
    }

    /// Returns an empty graph cache for a model at `place`.
    pub(crate) fn cuda_graphs(&self, place: Placement) -> CudaGraphCache {
        CudaGraphCache::with_sizes(self.has_graphs(place), self.graph_batches.clone())
    }
}
