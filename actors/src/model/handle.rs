//! A handle to a running model: it reserves permits with its replicas, and prepares tasks in all of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use actix::ArbiterHandle;
use concord_models::{
    DecodedImage, FeatureKind, FeatureSource, GenerateRequest, Generator, MemoryEstimate, ModelError,
    ModelOptions, Pixels, PreprocessLimits, Preprocessor, Scale, TaskId, TaskSpec, device_name, dtype_name,
};
use concord_policy::VoteFailure;

use super::actor::ModelActor;
use super::loaded_replica::LoadedReplica;
use super::queue::Entry;
use super::replica::{QueuePermit, Replica, reserve};
use super::text::{TextEntry, TokenSink};
use crate::Trace;
use crate::capacity::Capacity;
use crate::deadline::SharedDeadline;
use crate::fatal::Fatal;
use crate::metrics::{Metrics, Phase};
use crate::startup::Startup;
use crate::vote_request::VoteRequest;

/// The limit for preparing a task, whose text embeddings take milliseconds on a GPU, seconds on a slow CPU
/// behind a full queue.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// The limit for whatever a model captures and measures for one batch size.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(600);

static NEXT_TASK: AtomicU64 = AtomicU64::new(1);

/// A running model.
#[derive(Debug, Clone)]
pub(crate) struct ModelHandle {
    name: Arc<str>,
    preprocessor: Arc<Preprocessor>,
    /// The replicas, at least one.
    replicas: Arc<[Arc<Replica>]>,
    /// The turn among replicas that are equally loaded.
    turn: Arc<AtomicUsize>,
    metrics: Metrics,
    startup: Startup,
    /// The batch sizes that every replica runs at warm-up.
    warm_up_batches: Arc<[usize]>,
    /// The options that it was started with.
    pub(crate) options: Arc<ModelOptions>,
    /// The digest of its snapshot.
    pub(crate) snapshot: [u8; 32],
    pub(crate) parameters: i64,
    pub(crate) dtype: &'static str,
    /// The estimate for one replica; `None` where its files do not say.
    pub(crate) memory: Option<MemoryEstimate>,
    /// The number of values of the feature that comes with its votes, where it is a backbone.
    pub(crate) feature_length: Option<usize>,
    /// True if the model generates text.
    pub(crate) generates: bool,
    /// True if its prompt may be a question in words.
    pub(crate) takes_questions: bool,
    max_scratch_bytes: u64,
    /// The capacity for texts.
    pub(crate) text_capacity: Arc<Capacity>,
}

/// A model that has been loaded and does not run yet.
#[derive(Debug)]
pub(crate) struct LoadedModel {
    pub(crate) first: LoadedReplica,
    pub(crate) others: Vec<LoadedReplica>,
    pub(crate) snapshot: [u8; 32],
    pub(crate) memory: Option<MemoryEstimate>,
}

/// A request for a text, whose permit has been reserved.
#[derive(Debug)]
pub(crate) struct TextRequest {
    pub(crate) request: GenerateRequest,
    pub(crate) permit: QueuePermit,
    pub(crate) deadline: Arc<SharedDeadline>,
    /// The text's span.
    pub(crate) trace: Trace,
    pub(crate) sink: TokenSink,
}

/// A task made ready in a model, under the same name in each of its replicas; forgotten there on drop.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: TaskId,
    replicas: Arc<[Arc<Replica>]>,
}

/// Returns the number of values of a row of a backbone's features, all of which have the same.
fn row_length(source: &dyn FeatureSource) -> usize {
    let [_, length] = source.feature_shape(FeatureKind::Pooled);
    length
}

impl ModelHandle {
    /// Starts the actors of a loaded model, one for each replica.
    pub(crate) fn start(
        name: &Arc<str>,
        loaded: LoadedModel,
        options: &ModelOptions,
        running: &Running<'_>,
    ) -> Self {
        let LoadedModel { first, others, snapshot, memory } = loaded;
        let model = &first.model;
        let (parameters, dtype) = (model.info().parameters, dtype_name(model.info().placement.kind));
        let device = model.info().placement.device;
        let preprocessor = Arc::new(model.info().preprocessor.clone().for_device(device));
        let (generates, takes_questions) =
            (model.generator().is_some(), model.generator().is_some_and(Generator::takes_questions));
        let warm_up_batches = model.warm_up_batches(options).into();
        let feature_length = model.feature_source().map(row_length);
        let mut replicas = Vec::new();
        for (index, loaded) in std::iter::once(first).chain(others).enumerate() {
            let device = device_name(loaded.model.info().placement.device);
            let replica = Arc::new(Replica::new(index, device, options.queue_capacity));
            ModelActor::begin(name, &replica, loaded, options, running);
            replicas.push(replica);
        }
        Self {
            name: Arc::clone(name),
            preprocessor,
            replicas: replicas.into(),
            turn: Arc::default(),
            metrics: running.metrics.clone(),
            startup: running.startup.clone(),
            warm_up_batches,
            options: Arc::new(options.clone()),
            snapshot,
            parameters,
            dtype,
            memory,
            feature_length,
            generates,
            takes_questions,
            max_scratch_bytes: running.max_scratch_bytes,
            text_capacity: Arc::new(Capacity::new(Instant::now())),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }

    /// Returns whether all its replicas are full.
    pub(crate) fn is_full(&self) -> bool {
        self.replicas.iter().all(|replica| replica.is_full())
    }

    /// Reserves a permit with the least loaded replica, or fails at once where all are full, which they never
    /// are for a request that is under way.
    pub(crate) fn reserve(&self, is_under_way: bool) -> Result<QueuePermit, VoteFailure> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let depth = self.metrics.queue_depth.with_label_values(&[&*self.name]);
        reserve(&self.replicas, turn, is_under_way, &depth).ok_or_else(VoteFailure::busy)
    }

    /// Returns how many images wait for its replicas or run in them.
    pub(crate) fn depth(&self) -> usize {
        self.replicas.iter().map(|replica| replica.depth()).sum()
    }

    /// Returns the scale at which it wants a JPEG of this upright width and height decoded.
    pub(crate) fn scale(&self, size: [u32; 2]) -> Scale {
        if self.options.decodes_fast() { self.preprocessor.scale(size) } else { Scale::WHOLE }
    }

    /// Preprocesses the image and queues it; the caller is a thread of the CPU pool.
    pub(crate) fn submit(
        &self,
        task: TaskId,
        image: &DecodedImage,
        permit: QueuePermit,
        request: VoteRequest,
    ) {
        let started = Instant::now();
        match self.preprocess(image, &request.deadline) {
            Ok(pixels) => {
                let preprocess = started.elapsed();
                let replica = Arc::clone(&permit.replica);
                let queued = Instant::now();
                replica.queue.push(Entry { task, pixels, permit, request, preprocess, queued });
                // Afterwards, so that an image that has been counted is in the queue.
                self.metrics.observe(Phase::Preprocess, preprocess);
            }
            Err(ModelError::Abandoned) => request.reply.expired(),
            Err(error) => request.reply.failed(error.to_string()),
        }
    }

    /// Preprocesses the image and queues the text; the caller is a thread of the CPU pool.
    pub(crate) fn generate(&self, image: &DecodedImage, text: TextRequest) {
        let TextRequest { request, permit, deadline, trace, sink } = text;
        match self.preprocess(image, &deadline) {
            Ok(pixels) => {
                let queued = Instant::now();
                let replica = Arc::clone(&permit.replica);
                let entry = TextEntry { request, pixels, permit, deadline, trace, sink, queued };
                replica.queue.push_text(Box::new(entry));
            }
            Err(ModelError::Abandoned) => sink.done(Err(VoteFailure::expired())),
            Err(error) => sink.done(Err(VoteFailure::new(error.to_string()))),
        }
    }

    /// Preprocesses an image for as long as the work is wanted, and counts it as dropped afterwards.
    fn preprocess(&self, image: &DecodedImage, deadline: &SharedDeadline) -> Result<Pixels, ModelError> {
        let is_wanted = || deadline.cancel_reason().is_none();
        let limits = PreprocessLimits { max_scratch_bytes: self.max_scratch_bytes, is_wanted: &is_wanted };
        let result = self.preprocessor.apply_decoded(image, &limits);
        if matches!(result, Err(ModelError::Abandoned))
            && let Some(reason) = deadline.cancel_reason()
        {
            self.metrics.dropped.with_label_values(&[&*self.name, reason.name()]).inc();
        }
        result
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Prepares a task on each replica's thread, between two batches, and waits for all.
    ///
    /// # Errors
    /// When the model cannot answer it.
    pub(crate) fn prepare(&self, task: &TaskSpec) -> Result<Arc<Prepared>, VoteFailure> {
        let id = TaskId(NEXT_TASK.fetch_add(1, Ordering::Relaxed));
        // Even where it fails or takes too long: a thread may come to it later.
        let forgotten_on_drop = Arc::new(Prepared { id, replicas: Arc::clone(&self.replicas) });
        let deadline = Instant::now() + PREPARE_TIMEOUT;
        let mut results = Vec::new();
        for replica in self.replicas.iter() {
            let (result, done) = mpsc::channel();
            let (task, startup, label) = (task.clone(), self.startup.clone(), self.label(replica));
            replica.queue.run(Box::new(move |loaded| {
                let started = Instant::now();
                let prepared = loaded.prepare(id, &task);
                if prepared.is_ok() {
                    startup.step(&label, started.elapsed());
                }
                // Whoever waited may have given up.
                let _late = result.send(prepared);
            }));
            results.push(done);
        }
        for done in results {
            let left = deadline.saturating_duration_since(Instant::now());
            received(done.recv_timeout(left), PREPARE_TIMEOUT)??;
        }
        Ok(forgotten_on_drop)
    }

    /// Announces what start-up has to do for each replica beside loading: the `tasks` that ask the model, and
    /// the batch sizes.
    pub(crate) fn announce_warm_up(&self, tasks: usize) {
        let batches = if tasks == 0 { 0 } else { self.warm_up_batches.len() };
        for replica in self.replicas.iter() {
            self.startup.announce(&self.label(replica), tasks + batches);
        }
    }

    /// Runs each batch size once, in one replica after the other: what a model captures must not be disturbed
    /// by what others do on their GPU.
    ///
    /// # Errors
    /// When the model does not run.
    pub(crate) fn warm_up(&self, task: TaskId) -> Result<(), VoteFailure> {
        for replica in self.replicas.iter() {
            for &batch in self.warm_up_batches.iter() {
                let (result, done) = mpsc::channel();
                let (startup, label) = (self.startup.clone(), self.label(replica));
                let (metrics, name, index) = (self.metrics.clone(), Arc::clone(&self.name), replica.index);
                replica.queue.run(Box::new(move |loaded| {
                    let started = Instant::now();
                    let warm = loaded.warm_up(task, batch);
                    metrics.set_batch_limit(&name, index, loaded.limit());
                    startup.step(&label, started.elapsed());
                    // Whoever waited may have given up.
                    let _late = result.send(warm);
                }));
                received(done.recv_timeout(WARM_UP_TIMEOUT), WARM_UP_TIMEOUT)??;
            }
        }
        Ok(())
    }

    /// Returns a replica's name during start-up.
    fn label(&self, replica: &Replica) -> String {
        if self.replicas.len() == 1 {
            self.name.to_string()
        } else {
            format!("{}/{}", self.name, replica.index)
        }
    }

    /// Ends the threads after what is queued.
    pub(crate) fn close(&self) {
        for replica in self.replicas.iter() {
            replica.queue.close();
        }
    }
}

/// Returns the result of a job on a replica's thread, or why there is none.
fn received<T>(result: Result<T, mpsc::RecvTimeoutError>, timeout: Duration) -> Result<T, VoteFailure> {
    result.map_err(|error| {
        VoteFailure::new(match error {
            mpsc::RecvTimeoutError::Timeout => format!("was not made ready within {} s", timeout.as_secs()),
            mpsc::RecvTimeoutError::Disconnected => "the model's thread ended".to_owned(),
        })
    })
}

/// The parts that all running models share.
pub(crate) struct Running<'a> {
    pub(crate) arbiter: &'a ArbiterHandle,
    pub(crate) metrics: &'a Metrics,
    pub(crate) fatal: &'a Fatal,
    pub(crate) startup: &'a Startup,
    /// The number of threads that one operation of a model may use.
    pub(crate) cpu_threads: usize,
    /// The most bytes that preprocessing an image may take beside its pixels.
    pub(crate) max_scratch_bytes: u64,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let id = self.id;
        for replica in self.replicas.iter() {
            replica.queue.run(Box::new(move |loaded| loaded.model.forget(id)));
        }
    }
}
