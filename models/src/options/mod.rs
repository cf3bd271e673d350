//! `[models.NAME]` of `ensemble.toml`: which snapshot a model is, and how it runs. Knows no architecture: each describes the
//! options of its own.

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

/// `[models.NAME]` in `ensemble.toml`: a snapshot, and how to run it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ModelOptions {
    /// Which implementation loads the snapshot: the name of one of [`ARCHITECTURES`](crate::ARCHITECTURES).
    pub architecture: String,
    /// The Hugging Face snapshot's folder, relative to the folder of `ensemble.toml`; or `random:PRESET`, for measuring:
    /// random weights at published sizes, see [`PRESETS`](crate::snapshot::presets::PRESETS).
    pub snapshot: PathBuf,
    /// `auto` (spread over the GPUs, otherwise the CPU), `cpu`, `cuda` (the first GPU) or `cuda:N`.
    pub device: String,
    /// `fp32`, `bf16` or `fp16`: what the weights are converted to, and computed in; or `fp8`: bf16, but for the
    /// products within the layers of image towers, and of Molmo2's text.
    pub dtype: String,
    /// `exact` (every pixel of the picture, as the reference implementation decodes it) or `fast` (of a JPEG, an
    /// eighth to a half of both sides, where that still is the model's own input size): one of [`DECODES`].
    pub decode: String,
    /// Whether forwards are replayed from CUDA graphs, where the model is on a GPU.
    pub graphs: bool,
    /// What batches are filled up to for their graphs, ascending; none: powers of two. Batches above the last one run
    /// without a graph.
    pub graph_batches: Vec<usize>,
    /// The options that only its architecture takes, with the values of the configuration.
    #[serde(skip)]
    pub own: OptionTable,
    /// The most images that run together.
    pub max_batch: usize,
    /// How long the first image of a batch waits for others that are on their way; with none, it does not wait.
    pub max_delay_ms: u64,
    /// How many images may wait for a replica or run in it; the next is refused at once.
    pub queue_capacity: usize,
    /// How many copies of the model are loaded, each with a thread, stream and queue of its own. On the CPU they share
    /// the cores.
    pub replicas: usize,
    /// How long after its memory was too small for a batch a replica tries batches of twice the size again.
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
    /// Whether JPEGs are decoded no larger than the model needs.
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

    /// Returns how often a head runs with dropout on each image; 0: once, without.
    pub fn mc_dropout_passes(&self) -> usize {
        usize::try_from(self.own.whole(&MC_DROPOUT_PASSES)).unwrap_or(usize::MAX)
    }

    /// Returns whether nothing but the trained heads differs between the two.
    pub fn is_same_but_for_heads(&self, other: &Self) -> bool {
        *self == Self { own: other.own.with_files_of(&self.own, &HEADS), ..other.clone() }
    }

    /// Whether a model that is there has graphs.
    pub(crate) fn has_graphs(&self, place: Placement) -> bool {
        self.graphs && place.device.is_cuda()
    }

    /// The graphs of a model that is there.
    pub(crate) fn cuda_graphs(&self, place: Placement) -> CudaGraphCache {
        CudaGraphCache::with_sizes(self.has_graphs(place), self.graph_batches.clone())
    }
}
