//! What others have of a model: a way to reserve a place in its queue, and tasks made ready in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use actix::{Actor, ArbiterHandle};
use concord_models::{
    GenerateRequest, Generator, ModelOptions, Placement, Preprocessor, RgbImage, TaskId, TaskLabels,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::queue::{Entry, Queue};
use super::text::TextEntry;
use super::worker::Limits;
use super::{ModelActor, Seat, Writer};
use crate::Trace;
use crate::fatal::Fatal;
use crate::metrics::Metrics;
use crate::policy::VoteFailure;
use crate::ticket::Ticket;
use crate::voter::Wanted;

/// A task's text embeddings take milliseconds on a GPU, seconds on a slow CPU behind a full queue.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

static NEXT_TASK: AtomicU64 = AtomicU64::new(1);

/// A running model.
#[derive(Debug, Clone)]
pub(crate) struct ModelHandle {
    name: Arc<str>,
    preprocessor: Arc<Preprocessor>,
    queue: Arc<Queue>,
    places: Arc<Semaphore>,
    metrics: Metrics,
    /// What it was started with.
    pub(crate) options: Arc<ModelOptions>,
    /// The digest of its snapshot.
    pub(crate) snapshot: [u8; 32],
    pub(crate) placement: Placement,
    pub(crate) parameters: i64,
    /// Whether it writes texts.
    pub(crate) writes: bool,
    /// Whether it can be asked in words.
    pub(crate) takes_questions: bool,
}

/// A text that is asked for; its place has been reserved.
#[derive(Debug)]
pub(crate) struct AskedText {
    pub(crate) request: GenerateRequest,
    pub(crate) place: Place,
    pub(crate) ticket: Arc<Ticket>,
    /// The text's span.
    pub(crate) trace: Trace,
    pub(crate) writer: Writer,
}

/// A place among those that wait for a model or run in it; given up on drop.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    queue: Arc<Queue>,
    depth: prometheus::IntGauge,
    /// Whether it has come to the queue.
    pub(super) arrived: bool,
}

/// A task made ready in a model; forgotten there on drop.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) id: TaskId,
    queue: Arc<Queue>,
}

impl ModelHandle {
    /// Starts the actor of a loaded model.
    pub(crate) fn start(name: &Arc<str>, seat: Seat, options: &ModelOptions, running: &Running<'_>) -> Self {
        let queue = Arc::new(Queue::default());
        let (snapshot, placement, parameters) =
            (seat.snapshot, seat.model.placement(), seat.model.parameters());
        let preprocessor = Arc::new(seat.model.preprocessor().clone());
        let generator = seat.model.generator();
        let writes = generator.is_some();
        let takes_questions = generator.is_some_and(Generator::takes_questions);
        let actor = ModelActor {
            name: Arc::clone(name),
            queue: Arc::clone(&queue),
            seat: Arc::new(Mutex::new(seat)),
            limits: Limits {
                max_batch: options.max_batch,
                max_delay: Duration::from_millis(options.max_delay_ms),
                cpu_threads: running.cpu_threads,
            },
            metrics: running.metrics.clone(),
            fatal: running.fatal.clone(),
            panics: 0,
            forwards_at_last_panic: 0,
        };
        // Nobody needs its address: it lives as long as its thread, which tells it how it ends.
        let _address = ModelActor::start_in_arbiter(running.arbiter, move |_| actor);
        Self {
            name: Arc::clone(name),
            preprocessor,
            queue,
            places: Arc::new(Semaphore::new(options.queue_capacity)),
            metrics: running.metrics.clone(),
            options: Arc::new(options.clone()),
            snapshot,
            placement,
            parameters,
            writes,
            takes_questions,
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// A place, or at once the failure of a model that has none.
    pub(crate) fn reserve(&self) -> Result<Place, VoteFailure> {
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| VoteFailure::busy())?;
        let depth = self.metrics.queue_depth.with_label_values(&[&*self.name]);
        depth.inc();
        self.queue.expect();
        Ok(Place { _permit: permit, queue: Arc::clone(&self.queue), depth, arrived: false })
    }

    /// How many images wait for it or run in it.
    pub(crate) fn depth(&self) -> usize {
        self.options.queue_capacity - self.places.available_permits()
    }

    /// Makes the image ready and queues it; the caller is a thread of the CPU pool.
    pub(crate) fn submit(&self, task: TaskId, image: &RgbImage, place: Place, wanted: Wanted) {
        let started = Instant::now();
        match self.preprocessor.apply(image) {
            Ok(pixels) => {
                let preprocess = started.elapsed();
                let phase = self.metrics.phase_seconds.with_label_values(&["preprocess"]);
                phase.observe(preprocess.as_secs_f64());
                self.queue.push(Entry { task, pixels, place, wanted, preprocess, queued: Instant::now() });
            }
            Err(error) => wanted.reply.failed(error.to_string()),
        }
    }

    /// Makes the image ready and queues the text; the caller is a thread of the CPU pool.
    pub(crate) fn write(&self, image: &RgbImage, text: AskedText) {
        let AskedText { request, place, ticket, trace, writer } = text;
        match self.preprocessor.apply(image) {
            Ok(pixels) => {
                let queued = Instant::now();
                let entry = TextEntry { request, pixels, place, ticket, trace, writer, queued };
                self.queue.push_text(Box::new(entry));
            }
            Err(error) => writer.done(Err(VoteFailure::new(error.to_string()))),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Makes a task ready on the model's thread, between two batches, and waits for it.
    ///
    /// # Errors
    /// When the model cannot answer it.
    pub(crate) fn prepare(&self, task: TaskLabels) -> Result<Arc<Prepared>, VoteFailure> {
        let id = TaskId(NEXT_TASK.fetch_add(1, Ordering::Relaxed));
        let (result, done) = mpsc::channel();
        self.queue.run(Box::new(move |seat| _ = result.send(seat.prepare(id, &task))));
        let prepared = done.recv_timeout(PREPARE_TIMEOUT).map_err(|error| {
            VoteFailure::new(match error {
                mpsc::RecvTimeoutError::Timeout => {
                    format!("was not made ready within {} s", PREPARE_TIMEOUT.as_secs())
                }
                mpsc::RecvTimeoutError::Disconnected => "the model's thread ended".to_owned(),
            })
        });
        // Also where it took too long: the thread may come to it later.
        let forgotten_on_drop = Arc::new(Prepared { id, queue: Arc::clone(&self.queue) });
        prepared??;
        Ok(forgotten_on_drop)
    }

    /// Ends the thread after what is queued.
    pub(crate) fn close(&self) {
        self.queue.close();
    }
}

/// What all models share.
pub(crate) struct Running<'a> {
    pub(crate) arbiter: &'a ArbiterHandle,
    pub(crate) metrics: &'a Metrics,
    pub(crate) fatal: &'a Fatal,
    /// That one operation of a model may use.
    pub(crate) cpu_threads: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.depth.dec();
        if !self.arrived {
            self.queue.expect_one_less();
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let id = self.id;
        self.queue.run(Box::new(move |seat| seat.model.forget(id)));
    }
}
