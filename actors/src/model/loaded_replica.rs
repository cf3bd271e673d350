//! A loaded replica of a model, and the stream that its work goes to.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use concord_models::libtorch::{Event, LibtorchError, Stream, release_unused_memory};
use concord_models::{
    GenerateRequest, Generated, LoadedModelInfo, Model, ModelError, ModelOptions, Pixels, RgbImage, TaskId,
    TaskSpec, is_out_of_memory,
};
use concord_policy::{ModelOutput, VoteFailure};

use super::limit::BatchLimit;

/// A function that loads the model that `[models.NAME]` describes; relative paths start at the folder given.
pub type Loader =
    dyn Fn(&str, &ModelOptions, &Path) -> Result<Box<dyn Model>, ModelError> + Send + Sync + 'static;

/// A loaded replica, its stream, and how many images it can run together.
#[derive(Debug)]
pub(crate) struct LoadedReplica {
    pub(crate) model: Box<dyn Model>,
    stream: Stream,
    pub(super) limit: BatchLimit,
}

/// The side of a blank image in pixels. Any size will do: preprocessing brings it to the model's.
const WARM_UP_SIDE: u32 = 256;

impl LoadedReplica {
    /// Loads a model. It may move to another thread than the one that runs this.
    pub(crate) fn load(
        name: &str,
        options: &ModelOptions,
        base: &Path,
        loader: &Loader,
    ) -> Result<Self, VoteFailure> {
        contained(|| {
            let model = loader(name, options, base)?;
            let stream = Stream::new(model.info().placement.device)?;
            let recovery = Duration::from_secs(options.batch_recovery_s);
            let limit = BatchLimit::new(options.max_batch, recovery, Instant::now());
            Ok(Self { model, stream, limit })
        })
    }

    /// Returns the most images that it runs together, as of the last batch.
    pub(super) fn limit(&self) -> usize {
        self.limit.current()
    }

    /// Prepares a task and runs it once: libtorch chooses and prepares its kernels at the first run of a
    /// shape, which would otherwise be the first request's to wait for. It also shows that the model runs at
    /// all.
    pub(super) fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), VoteFailure> {
        contained(|| {
            // What is prepared is read on this stream, and other streams do not wait for it.
            let _current = self.stream.enter()?;
            self.model.prepare(id, task)?;
            let pixels = self.blank()?;
            let output = self.model.classify(id, &[&pixels])?.pop().unwrap_or_default();
            output
                .logits(task.labels.len())
                .map(drop)
                .map_err(|error| ModelError::Task { task: task.task.clone(), message: error.to_string() })
        })
    }

    /// Runs a batch of this size before requests come. A batch that does not fit into memory lowers the limit
    /// instead: smaller ones are answered all the same.
    pub(super) fn warm_up(&mut self, id: TaskId, batch: usize) -> Result<(), VoteFailure> {
        if batch > self.limit.current() {
            return Ok(());
        }
        let outcome = contained(|| {
            let run = || {
                let _current = self.stream.enter()?;
                let pixels = self.blank()?;
                self.model.warm_up(id, &vec![&pixels; batch])?;
                Ok(self.stream.synchronize()?)
            };
            Ok(out_of_memory_as_error(run))
        });
        // Larger batches took more than the next ones need.
        release_unused_memory(self.model.info().placement.device);
        match outcome? {
            Err(error) if error.is_out_of_memory() && batch > 1 => {
                self.limit.lower(batch.div_ceil(2), Instant::now());
                tracing::warn!(%error, batch, "out of memory at warm-up: smaller batches than this will run");
                Ok(())
            }
            outcome => outcome.map_err(|error| VoteFailure::new(error.to_string())),
        }
    }

    /// Returns a blank image, preprocessed as the images of requests will be.
    fn blank(&self) -> Result<Pixels, ModelError> {
        let LoadedModelInfo { preprocessor, placement, .. } = self.model.info();
        preprocessor.clone().for_device(placement.device).apply(&RgbImage::new(WARM_UP_SIDE, WARM_UP_SIDE))
    }

    /// Runs a batch, and returns its outputs and the milliseconds on the device.
    pub(super) fn forward(
        &self,
        task: TaskId,
        images: &[&Pixels],
    ) -> Result<(Vec<ModelOutput>, f64), ModelError> {
        out_of_memory_as_error(|| {
            let _current = self.stream.enter()?;
            let start = Event::record(&self.stream)?;
            let outputs = self.model.classify(task, images)?;
            let end = Event::record(&self.stream)?;
            end.synchronize()?;
            Ok((outputs, start.elapsed_ms(&end)?))
        })
    }

    /// Generates a text about an image.
    pub(super) fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        let generator = self.model.generator();
        let none = || ModelError::Unsupported("this model generates no text".to_owned());
        out_of_memory_as_error(|| {
            let _current = self.stream.enter()?;
            let generated = generator.ok_or_else(none)?.generate(image, request, on_text)?;
            self.stream.synchronize()?;
            Ok(generated)
        })
    }

    /// Checks that the device still works: a CUDA error of the kind that sticks to the process shows here.
    pub(super) fn check_device(&self) -> Result<(), LibtorchError> {
        self.stream.synchronize()
    }
}

/// Runs `work` and returns its panic as a failure: libtorch's exceptions arrive as panics.
fn contained<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, VoteFailure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| VoteFailure::new(error.to_string())),
        Err(panic) => Err(VoteFailure::new(format!("the model panicked: {}", panic_text(panic.as_ref())))),
    }
}

/// Runs `work` and returns a panic for lack of memory as an error, since nothing is wrong with the thread
/// then. Other panics go on.
fn out_of_memory_as_error<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic_text(panic.as_ref());
            if is_out_of_memory(&text) { Err(ModelError::OutOfMemory(text)) } else { resume_unwind(panic) }
        }
    }
}

/// Returns the first line of a panic's message. tch panics with its errors as Rust's `Debug` shows them,
/// where lines end in a backslash and an n.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let line = text.lines().next().unwrap_or_default();
    line.split("\\n").next().unwrap_or_default().to_owned()
}
