//! A loaded model, whatever its architecture.

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

/// What is known of a model since it was loaded.
#[derive(Debug)]
pub struct LoadedModelInfo {
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
    fn info(&self) -> &LoadedModelInfo;

    /// Makes ready what a task needs, such as its head or the embeddings of its prompts, so that no
    /// request has to wait for it.
    ///
    /// # Errors
    /// When the model cannot answer this task.
    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError>;

    /// Gives up what was prepared under this name.
    fn forget(&mut self, id: TaskId);

    /// What it says about each image. The task must have been prepared.
    ///
    /// # Errors
    /// When it was not, or libtorch refuses.
    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError>;

    /// The batch sizes that are run before requests come, in this order. A batch of one has run by then: each task is
    /// tried with one image when it is prepared.
    ///
    /// A GPU is given every size that batches are filled up to, because libtorch chooses kernels and takes memory at the
    /// first run of a shape, and graphs are recorded then; on the CPU that brings nothing.
    fn warm_up_batches(&self, options: &ModelOptions) -> Vec<usize> {
        match self.info().placement.device {
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
    fn bench_targets(
        &self,
        _images: &[&Pixels],
        _new_tokens: usize,
    ) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        Ok(Vec::new())
    }

    /// The tensors of a parity fixture, computed by this implementation and named as there.
    ///
    /// # Errors
    /// When the fixture lacks an input.
    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError>;
}
