//! What others have of a model: a way to reserve a place with one of its replicas, and tasks made ready in all of them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use actix::ArbiterHandle;
use concord_models::{
    DecodedImage, GenerateRequest, Generator, MemoryEstimate, ModelOptions, Preprocessor, Scale, TaskId,
    TaskSpec, device_name, dtype_name,
};

use super::queue::Entry;
use super::replica::{Replica, reserve};
use super::text::TextEntry;
use super::{ModelActor, Place, Seat, TokenSink};
use crate::Trace;
use crate::fatal::Fatal;
use crate::metrics::Metrics;
use crate::startup::Startup;
use crate::ticket::Ticket;
use crate::voter::Wanted;
use concord_policy::VoteFailure;

/// A task's text embeddings take milliseconds on a GPU, seconds on a slow CPU behind a full queue.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// Whatever a model captures and measures for one batch size.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(600);

static NEXT_TASK: AtomicU64 = AtomicU64::new(1);

/// A running model.
#[derive(Debug, Clone)]
pub(crate) struct ModelHandle {
    name: Arc<str>,
    preprocessor: Arc<Preprocessor>,
    /// At least one.
    replicas: Arc<[Arc<Replica>]>,
    /// Whose turn it is among replicas that are equally loaded.
    turn: Arc<AtomicUsize>,
    metrics: Metrics,
    startup: Startup,
    /// Of every replica.
    warm_up_batches: Arc<[usize]>,
    /// What it was started with.
    pub(crate) options: Arc<ModelOptions>,
    /// The digest of its snapshot.
    pub(crate) snapshot: [u8; 32],
    pub(crate) parameters: i64,
    pub(crate) dtype: &'static str,
    /// Of one replica; `None` where its files do not say.
    pub(crate) memory: Option<MemoryEstimate>,
    /// Whether it writes texts.
    pub(crate) writes: bool,
    /// Whether it can be asked in words.
    pub(crate) takes_questions: bool,
}

/// A model that has been loaded and does not run yet.
#[derive(Debug)]
pub(crate) struct LoadedModel {
    /// The first.
    pub(crate) seat: Seat,
    pub(crate) other_seats: Vec<Seat>,
    pub(crate) snapshot: [u8; 32],
    pub(crate) memory: Option<MemoryEstimate>,
}

/// A text that is asked for; its place has been reserved.
#[derive(Debug)]
pub(crate) struct TextRequest {
    pub(crate) request: GenerateRequest,
    pub(crate) place: Place,
    pub(crate) ticket: Arc<Ticket>,
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

impl ModelHandle {
    /// Starts the actors of a loaded model, one for each replica.
    pub(crate) fn start(
        name: &Arc<str>,
        loaded: LoadedModel,
        options: &ModelOptions,
        running: &Running<'_>,
    ) -> Self {
        let LoadedModel { seat, other_seats, snapshot, memory } = loaded;
        let model = &seat.model;
        let (parameters, dtype) = (model.info().parameters, dtype_name(model.info().placement.kind));
        let device = model.info().placement.device;
        let preprocessor = Arc::new(model.info().preprocessor.clone().for_device(device));
        let (writes, takes_questions) =
            (model.generator().is_some(), model.generator().is_some_and(Generator::takes_questions));
        let warm_up_batches = model.warm_up_batches(options).into();
        let mut replicas = Vec::new();
        for (index, seat) in std::iter::once(seat).chain(other_seats).enumerate() {
            let device = device_name(seat.model.info().placement.device);
            let replica = Arc::new(Replica::new(index, device, options.queue_capacity));
            ModelActor::begin(name, &replica, seat, options, running);
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
            writes,
            takes_questions,
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }

    /// A place in the least loaded replica, or at once the failure of a model that has none.
    pub(crate) fn reserve(&self) -> Result<Place, VoteFailure> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let depth = self.metrics.queue_depth.with_label_values(&[&*self.name]);
        reserve(&self.replicas, turn, &depth).ok_or_else(VoteFailure::busy)
    }

    /// How many images wait for its replicas or run in them.
    pub(crate) fn depth(&self) -> usize {
        self.replicas.iter().map(|replica| replica.depth()).sum()
    }

    /// The scale at which it wants a JPEG of this upright width and height decoded.
    pub(crate) fn scale(&self, size: [u32; 2]) -> Scale {
        if self.options.decodes_fast() { self.preprocessor.scale(size) } else { Scale::WHOLE }
    }

    /// Makes the image ready and queues it; the caller is a thread of the CPU pool.
    pub(crate) fn submit(&self, task: TaskId, picture: &DecodedImage, place: Place, wanted: Wanted) {
        let started = Instant::now();
        match self.preprocessor.apply_decoded(picture) {
            Ok(pixels) => {
                let preprocess = started.elapsed();
                let phase = self.metrics.phase_seconds.with_label_values(&["preprocess"]);
                phase.observe(preprocess.as_secs_f64());
                let replica = Arc::clone(&place.replica);
                let queued = Instant::now();
                replica.queue.push(Entry { task, pixels, place, wanted, preprocess, queued });
            }
            Err(error) => wanted.reply.failed(error.to_string()),
        }
    }

    /// Makes the image ready and queues the text; the caller is a thread of the CPU pool.
    pub(crate) fn write(&self, picture: &DecodedImage, text: TextRequest) {
        let TextRequest { request, place, ticket, trace, sink } = text;
        match self.preprocessor.apply_decoded(picture) {
            Ok(pixels) => {
                let queued = Instant::now();
                let replica = Arc::clone(&place.replica);
                let entry = TextEntry { request, pixels, place, ticket, trace, sink, queued };
                replica.queue.push_text(Box::new(entry));
            }
            Err(error) => sink.done(Err(VoteFailure::new(error.to_string()))),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Makes a task ready on each replica's thread, between two batches, and waits for all.
    ///
    /// # Errors
    /// When the model cannot answer it.
    pub(crate) fn prepare(&self, task: &TaskSpec) -> Result<Arc<Prepared>, VoteFailure> {
        let id = TaskId(NEXT_TASK.fetch_add(1, Ordering::Relaxed));
        // Also where it fails or takes too long: a thread may come to it later.
        let forgotten_on_drop = Arc::new(Prepared { id, replicas: Arc::clone(&self.replicas) });
        let deadline = Instant::now() + PREPARE_TIMEOUT;
        let mut results = Vec::new();
        for replica in self.replicas.iter() {
            let (result, done) = mpsc::channel();
            let (task, startup, label) = (task.clone(), self.startup.clone(), self.label(replica));
            replica.queue.run(Box::new(move |seat| {
                let started = Instant::now();
                let prepared = seat.prepare(id, &task);
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

    /// What a start-up has to do for it beside loading, for each replica: `tasks` that ask it, and the batch sizes.
    pub(crate) fn expect_warm_up(&self, tasks: usize) {
        let batches = if tasks == 0 { 0 } else { self.warm_up_batches.len() };
        for replica in self.replicas.iter() {
            self.startup.expect(&self.label(replica), tasks + batches);
        }
    }

    /// Runs each batch size once, in one replica after the other: what a model captures must not be disturbed by what
    /// others do on their GPU.
    ///
    /// # Errors
    /// When the model does not run.
    pub(crate) fn warm_up(&self, task: TaskId) -> Result<(), VoteFailure> {
        for replica in self.replicas.iter() {
            for &batch in self.warm_up_batches.iter() {
                let (result, done) = mpsc::channel();
                let (startup, label) = (self.startup.clone(), self.label(replica));
                let (metrics, name, index) = (self.metrics.clone(), Arc::clone(&self.name), replica.index);
                replica.queue.run(Box::new(move |seat| {
                    let started = Instant::now();
                    let warm = seat.warm_up(task, batch);
                    metrics.set_batch_limit(&name, index, seat.limit());
                    startup.step(&label, started.elapsed());
                    // Whoever waited may have given up.
                    let _late = result.send(warm);
                }));
                received(done.recv_timeout(WARM_UP_TIMEOUT), WARM_UP_TIMEOUT)??;
            }
        }
        Ok(())
    }

    /// As start-up calls a replica.
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

/// What a replica's thread has said, if it has.
fn received<T>(result: Result<T, mpsc::RecvTimeoutError>, timeout: Duration) -> Result<T, VoteFailure> {
    result.map_err(|error| {
        VoteFailure::new(match error {
            mpsc::RecvTimeoutError::Timeout => format!("was not made ready within {} s", timeout.as_secs()),
            mpsc::RecvTimeoutError::Disconnected => "the model's thread ended".to_owned(),
        })
    })
}

/// What all models share.
pub(crate) struct Running<'a> {
    pub(crate) arbiter: &'a ArbiterHandle,
    pub(crate) metrics: &'a Metrics,
    pub(crate) fatal: &'a Fatal,
    pub(crate) startup: &'a Startup,
    /// That one operation of a model may use.
    pub(crate) cpu_threads: usize,
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let id = self.id;
        for replica in self.replicas.iter() {
            replica.queue.run(Box::new(move |seat| seat.model.forget(id)));
        }
    }
}
