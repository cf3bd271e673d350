//! What the cascade needs of a model, whatever its architecture, and the list of architectures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::architectures::torchscript::InputOptions;
use crate::architectures::{dinov3, florence2, molmo2, siglip2, torchscript};
use crate::head::FeatureSource;
use crate::image::decoded::DECODES;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::inspect::bench_target::Part;
use crate::libtorch::{Stream, release_unused_memory};
use crate::nn::fp8::computed_in;
use crate::parity::Fixture;
use crate::runtime::cuda_graphs::{buckets, take_fallbacks_here};
use crate::runtime::device::{check_placement, parse_device, parse_dtype};
use crate::snapshot::folder::Snapshot;
use crate::snapshot::weights::WeightSource;
use crate::{Generator, ModelError, Region};

/// Every architecture. A new one is a file beside this and a line here.
pub const ARCHITECTURES: &[Architecture] = &[
    dinov3::ARCHITECTURE,
    siglip2::ARCHITECTURE,
    florence2::ARCHITECTURE,
    molmo2::ARCHITECTURE,
    torchscript::ARCHITECTURE,
];

/// Loads a snapshot of one architecture.
pub(crate) type Load = fn(&Snapshot, &ModelOptions, Placement) -> Result<Box<dyn Model>, ModelError>;

/// An architecture's name, what it accepts, and how it is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// As `ensemble.toml` calls it.
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it loads; none where it needs no such file.
    pub model_types: &'static [&'static str],
    /// The options of [`ModelOptions`] that only some architectures take, and this one does.
    pub options: &'static [&'static str],
    /// How the names of tensors begin that belong to layers whose products may be of fp8; none where it has no such
    /// layers.
    pub(crate) fp8: &'static [&'static str],
    /// Loads a snapshot of it.
    pub(crate) load: Load,
}

impl Architecture {
    /// The architecture of that name in `ensemble.toml`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// Whether some of its layers can multiply in fp8.
    pub fn has_fp8(&self) -> bool {
        !self.fp8.is_empty()
    }

    /// The architecture that loads a `config.json` with this `model_type`.
    pub fn by_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type))
    }
}

/// `[models.NAME]` in `ensemble.toml`: a snapshot, and how to run it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct ModelOptions {
    /// Which implementation loads the snapshot: the name of one of [`ARCHITECTURES`].
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
            output: torchscript::OUTPUTS[0].to_owned(),
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
}

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

/// A task as a model needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskLabels {
    /// The task's name.
    pub task: String,
    /// The question about an image.
    pub question: String,
    /// The labels in the policy's order, each with its prompts (for zero-shot models).
    pub labels: Vec<(String, Vec<String>)>,
    /// For each label what a model that is asked the question would answer, for instance `YES`.
    pub answers: Vec<String>,
    /// The file of the trained head, relative to the snapshot's folder (for backbones).
    pub head: Option<PathBuf>,
}

/// What a model says about one image for one task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// Uncalibrated, one for each label.
    pub logits: Vec<f32>,
    /// What was found in the image, where the model looks for things.
    pub regions: Vec<Region>,
    /// What the backbone made of the image, where the model is a head on one: its CLS token after the final norm.
    pub feature: Option<Vec<f32>>,
    /// How much passes with dropout differ in their answers, where there are several: their mutual information in nats.
    pub uncertainty: Option<f32>,
}

impl From<Vec<f32>> for Scores {
    fn from(logits: Vec<f32>) -> Self {
        Self { logits, ..Self::default() }
    }
}

/// Names one preparation of a task, so that a changed task can be made ready while requests still use the old one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);

/// What is known of a model since it was loaded.
#[derive(Debug)]
pub struct Loaded {
    /// What turns an image into this model's input; may be used on any thread.
    pub preprocessor: Preprocessor,
    /// How many parameters it has.
    pub parameters: i64,
    /// Where it is, and in which number format.
    pub placement: Placement,
}

/// A loaded model.
///
/// Its methods run on one thread at a time, `prepare` and `classify` with the same stream current. They may panic
/// where libtorch throws (out of memory, a CUDA error): the caller contains that, and loses one batch; out of memory,
/// by panic or by error, it tries the halves.
pub trait Model: Send + std::fmt::Debug {
    /// What is known of it since it was loaded.
    fn loaded(&self) -> &Loaded;

    /// Makes ready what a task needs, such as its head or the embeddings of its prompts, so that no
    /// request has to wait for it.
    ///
    /// # Errors
    /// When the model cannot answer this task.
    fn prepare(&mut self, id: TaskId, task: &TaskLabels) -> Result<(), ModelError>;

    /// Gives up what was prepared under this name.
    fn forget(&mut self, id: TaskId);

    /// What it says about each image. The task must have been prepared.
    ///
    /// # Errors
    /// When it was not, or libtorch refuses.
    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<Scores>, ModelError>;

    /// The batch sizes that are run before requests come, in this order. A batch of one has run by then: each task is
    /// tried with one image when it is prepared.
    ///
    /// A GPU is given every size that batches are filled up to, because libtorch chooses kernels and takes memory at the
    /// first run of a shape, and graphs are recorded then; on the CPU that brings nothing.
    fn warm_up_batches(&self, options: &ModelOptions) -> Vec<usize> {
        match self.loaded().placement.device {
            Device::Cuda(_) => buckets(options.max_batch, &options.graph_batches),
            _ => Vec::new(),
        }
    }

    /// Runs a batch of one of these sizes, for a task that has been prepared. What is to be captured or measured for
    /// batches of this size is captured or measured here: no other model computes meanwhile.
    ///
    /// # Errors
    /// When libtorch refuses; where that is for want of memory, batches of this size are not tried for a while.
    fn warm_up(&mut self, id: TaskId, images: &[&Pixels]) -> Result<(), ModelError> {
        self.classify(id, images).map(drop)
    }

    /// How many of its forwards ran without the CUDA graph that they should have had, since this was asked last. Asked on
    /// the thread that it runs on.
    fn take_graph_fallbacks(&self) -> u64 {
        take_fallbacks_here()
    }

    /// The same model as a writer of text, where it is one.
    fn generator(&self) -> Option<&dyn Generator> {
        None
    }

    /// The same model as what heads are trained on, where it is a backbone.
    fn feature_source(&self) -> Option<&dyn FeatureSource> {
        None
    }

    /// What can be measured by itself, with these images as input; `new_tokens` is how much a writer writes then.
    ///
    /// # Errors
    /// When the images are of another model's preprocessor, or libtorch refuses.
    fn parts(&self, _images: &[&Pixels], _new_tokens: usize) -> Result<Vec<Part<'_>>, ModelError> {
        Ok(Vec::new())
    }

    /// The tensors of a parity fixture, computed by this implementation and named as there.
    ///
    /// # Errors
    /// When the fixture lacks an input.
    fn reproduce(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError>;
}

/// Loads the model that `options` describe; a relative snapshot path starts at `base`.
///
/// # Errors
/// When the device does not exist, the snapshot is not of that architecture, or does not load.
pub fn load_model(options: &ModelOptions, base: &Path) -> Result<Box<dyn Model>, ModelError> {
    load(options, &Snapshot::of(base, &options.snapshot)?)
}

/// The same with random weights, made on the device: the snapshot needs no file with tensors. For measuring.
///
/// # Errors
/// When the device does not exist, the snapshot is not of that architecture, or its configuration is faulty.
pub fn load_random(options: &ModelOptions, base: &Path, seed: i64) -> Result<Box<dyn Model>, ModelError> {
    let snapshot = Snapshot::of(base, &options.snapshot)?;
    load(options, &snapshot.with_weights(WeightSource::Random { seed }))
}

/// Held by whoever draws random numbers, one after the other: there is one generator, and equal seeds are to give equal
/// weights.
pub(crate) static DRAWING: Mutex<()> = Mutex::new(());

fn load(options: &ModelOptions, snapshot: &Snapshot) -> Result<Box<dyn Model>, ModelError> {
    let architecture = Architecture::by_name(&options.architecture)
        .ok_or_else(|| ModelError::Unsupported(format!("unknown architecture {:?}", options.architecture)))?;
    if !architecture.model_types.is_empty() {
        check_model_type(architecture, snapshot)?;
    }
    let placement = Placement { device: parse_device(&options.device)?, kind: parse_dtype(&options.dtype)? };
    check_placement(architecture, placement)?;
    let making = snapshot.is_random().then(|| DRAWING.lock().unwrap_or_else(PoisonError::into_inner));
    let model = (architecture.load)(snapshot, options, placement)?;
    drop(making);
    // What was joined or made on this thread's stream is read on another, which does not wait for it. Not the whole device:
    // that must not be waited for while another model records a graph on it.
    Stream::current(placement.device)?.synchronize()?;
    release_unused_memory(placement.device);
    Ok(model)
}

fn check_model_type(architecture: &Architecture, snapshot: &Snapshot) -> Result<(), ModelError> {
    let model_type = snapshot.model_type()?;
    if architecture.model_types.contains(&model_type.as_str()) {
        return Ok(());
    }
    let expected = architecture.model_types.join(" or ");
    let message =
        format!("model_type is {model_type:?}; architecture {} loads {expected}", architecture.name);
    Err(ModelError::malformed(&snapshot.path("config.json"), message))
}
