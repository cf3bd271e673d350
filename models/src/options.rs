//! `[models.NAME]` of `ensemble.toml`: which snapshot a model is, and how it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use crate::image::decoded::DECODES;
use crate::image::preprocess::{InputOptions, OUTPUTS};
use crate::runtime::cuda_graphs::Replays;
use crate::runtime::device::Placement;

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
    /// dinov3 only: the trained head for each task, a safetensors file in the snapshot's folder.
    pub heads: BTreeMap<String, PathBuf>,
    /// dinov3 only: how often a head is asked with dropout about each image, for an uncertainty; 0: once, without. Needs
    /// heads that were trained with dropout. The backbone runs once in any case.
    pub mc_dropout_passes: usize,
    /// siglip2 only: whether prompts are put in lower case, as the published ones were trained.
    pub lowercase: bool,
    /// florence2 only: `likelihood` (how probable each label's prompts are as captions; also what an empty text
    /// means) or `detect` (whether the prompts of each label but the first are found in the image, and where).
    pub mode: String,
    /// torchscript only: what goes into the module.
    pub input: InputOptions,
    /// torchscript only: what comes out of it, in the order of the task's labels: `logits` or `probabilities`.
    pub output: String,
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
            heads: BTreeMap::new(),
            mc_dropout_passes: 0,
            lowercase: true,
            mode: String::new(),
            input: InputOptions::default(),
            output: OUTPUTS[0].to_owned(),
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

    /// Whether a model that is there has graphs.
    pub(crate) fn has_graphs(&self, place: Placement) -> bool {
        self.graphs && place.device.is_cuda()
    }

    /// The graphs of a model that is there.
    pub(crate) fn cuda_graphs(&self, place: Placement) -> Replays {
        Replays::with_sizes(self.has_graphs(place), self.graph_batches.clone())
    }
}
