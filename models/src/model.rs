//! Defines the interface of a loaded model, independent of its architecture.

use std::collections::BTreeMap;

use concord_policy::ModelOutput;
use tch::{Device, Tensor};

use crate::ModelError;
use crate::generation::api::Generator;
use crate::head::FeatureSource;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::inspect::bench_target::BenchTarget;
use crate::inspect::fixture::Fixture;
use crate::options::ModelOptions;
use crate::runtime::cuda_graphs::{buckets, take_fallbacks_here};
use crate::runtime::device::Placement;
use crate::task::{TaskId, TaskSpec};

/// The properties of a model that are fixed when it is loaded.
#[derive(Debug)]
pub struct LoadedModelInfo {
    /// The preprocessor that turns an image into this model's input; may be used on any thread.
    pub preprocessor: Preprocessor,
    /// The number of parameters.
    pub parameters: i64,
    /// The device and the number format of the weights.
    pub placement: Placement,
}

/// A loaded model.
///
/// Its methods run on one thread at a time, `prepare` and `classify` with the same stream current. They may
/// panic where libtorch throws (out of memory, a CUDA error): the caller has to catch the panic, and loses
/// one batch; when out of memory, by panic or by error, it retries with the two halves.
pub trait Model: Send + std::fmt::Debug {
    /// Returns the properties that are fixed when the model is loaded.
    fn info(&self) -> &LoadedModelInfo;

    /// Loads or computes the data that a task needs, such as its head or the embeddings of its prompts, so
    /// that no request has to wait for it.
    ///
    /// # Errors
    /// Fails when the model cannot answer this task.
    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError>;

    /// Drops the data that was prepared for this task.
    fn forget(&mut self, id: TaskId);

    /// Returns the output for each image. The task must have been prepared.
    ///
    /// # Errors
    /// Fails when the task was not prepared, or libtorch fails.
    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError>;

    /// Returns the batch sizes to run before requests arrive, in this order. A batch of one has run by then,
    /// because each task is tried with one image when it is prepared.
    ///
    /// A GPU runs every size that batches are padded to, because libtorch chooses kernels and allocates
    /// memory at the first run of a shape, and graphs are captured then; on the CPU there is nothing to gain.
    fn warm_up_batches(&self, options: &ModelOptions) -> Vec<usize> {
        match self.info().placement.device {
            Device::Cuda(_) => buckets(options.max_batch, &options.graph_batches),
            _ => Vec::new(),
        }
    }

    /// Runs a batch of one of these sizes, for a task that has been prepared. All graph captures and timings
    /// for batches of this size happen here, while no other model computes.
    ///
    /// # Errors
    /// Fails when libtorch does; when it is out of memory, batches of this size are not tried for a while.
    fn warm_up(&mut self, id: TaskId, images: &[&Pixels]) -> Result<(), ModelError> {
        self.classify(id, images).map(drop)
    }

    /// Returns the number of forward passes since the last call that ran without the CUDA graph that they
    /// should have had. Must be called on the thread that the model runs on.
    fn take_graph_fallbacks(&self) -> u64 {
        take_fallbacks_here()
    }

    /// Returns the model as a generator of text, if it is one.
    fn generator(&self) -> Option<&dyn Generator> {
        None
    }

    /// Returns the model as a source of features for training heads, if it is a backbone.
    fn feature_source(&self) -> Option<&dyn FeatureSource> {
        None
    }

    /// Returns the parts of the model that can be benchmarked by themselves, with these images as input;
    /// `new_tokens` is the number of tokens that a generator produces.
    ///
    /// # Errors
    /// Fails when the images are from another model's preprocessor, or libtorch fails.
    fn bench_targets(
        &self,
        _images: &[&Pixels],
        _new_tokens: usize,
    ) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        Ok(Vec::new())
    }

    /// Computes the tensors of a parity fixture with this implementation, under the fixture's names.
    ///
    /// # Errors
    /// Fails when the fixture lacks an input.
    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError>;
}
