//! The Model actor, one for each replica: starts its thread, and starts it again when it dies.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};
use concord_models::ModelOptions;

use super::handle::Running;
use super::loaded_replica::LoadedReplica;
use super::replica::Replica;
use super::worker::{Exit, Limits, Worker};
use crate::fatal::Fatal;
use crate::log_limit::LogLimit;
use crate::metrics::Metrics;

/// The delay before a thread that panicked starts again, at first; doubled up to the maximum while nothing
/// succeeds. A model is back within a second.
const RESTART_DELAY: Duration = Duration::from_millis(5);
const RESTART_DELAY_MAX: Duration = Duration::from_millis(500);

/// By the names of models: an image that a model panics at can be sent again and again.
static PANICKED: LogLimit = LogLimit::new();

/// A message that the model's thread has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WorkerExited(Exit);

/// The actor of one replica.
#[derive(Debug)]
pub(crate) struct ModelActor {
    name: Arc<str>,
    replica: Arc<Replica>,
    /// The weights, which outlive the thread. A lock, because a thread that died cannot hand them over; held
    /// by the one thread that runs.
    loaded: Arc<Mutex<LoadedReplica>>,
    limits: Limits,
    metrics: Metrics,
    fatal: Fatal,
    /// Panics since the last batch that succeeded.
    panics: u32,
}

impl ModelActor {
    /// Starts the actor of a replica. Nobody needs its address: it lives as long as its thread, which sends
    /// it how it ended.
    pub(super) fn begin(
        name: &Arc<str>,
        replica: &Arc<Replica>,
        loaded: LoadedReplica,
        options: &ModelOptions,
        running: &Running<'_>,
    ) {
        running.metrics.set_batch_limit(name, replica.index, loaded.limit());
        let actor = Self {
            name: Arc::clone(name),
            replica: Arc::clone(replica),
            loaded: Arc::new(Mutex::new(loaded)),
            limits: Limits {
                max_delay: Duration::from_millis(options.max_delay_ms),
                cpu_threads: running.cpu_threads,
            },
            metrics: running.metrics.clone(),
            fatal: running.fatal.clone(),
            panics: 0,
        };
        let _address = Self::start_in_arbiter(running.arbiter, move |_| actor);
    }

    /// Starts the thread after `delay`.
    fn start_worker(&self, delay: Duration, context: &Context<Self>) {
        let worker = Worker {
            name: Arc::clone(&self.name),
            replica: Arc::clone(&self.replica),
            limits: self.limits,
            metrics: self.metrics.clone(),
        };
        let loaded = Arc::clone(&self.loaded);
        let address = actix::AsyncContext::address(context);
        let thread = move || {
            // Not by a timer of the actor: its mailbox comes before its timers.
            std::thread::sleep(delay);
            // The model is as good after a panic as before it: forwards do not change it.
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let exit = worker.run(&mut loaded);
            drop(loaded);
            // `do_send` ignores the mailbox's bound, and one message a thread is a bound.
            address.do_send(WorkerExited(exit));
        };
        let name = format!("model-{}-{}", self.name, self.replica.index);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(thread) {
            self.fatal.raise(format!("model {}: no thread: {error}", self.name));
        }
    }
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        self.start_worker(Duration::ZERO, context);
    }
}

impl Handler<WorkerExited> for ModelActor {
    type Result = ();

    fn handle(&mut self, WorkerExited(exit): WorkerExited, context: &mut Self::Context) {
        match exit {
            Exit::Closed => {}
            Exit::Panicked { message, batches } => {
                self.panics = if batches == 0 { self.panics + 1 } else { 0 };
                let delay = RESTART_DELAY.saturating_mul(1 << self.panics.min(16)).min(RESTART_DELAY_MAX);
                PANICKED.log(&self.name, || {
                    tracing::error!(
                        model = &*self.name,
                        replica = self.replica.index,
                        message,
                        ?delay,
                        "the model's thread panicked, and starts again"
                    );
                });
                self.metrics.restarts.with_label_values(&[&*self.name]).inc();
                self.start_worker(delay, context);
            }
            Exit::DeviceLost(message) => {
                self.replica.queue.close();
                let Replica { index, device, .. } = &*self.replica;
                self.fatal.raise(format!("model {}, replica {index} on {device}: {message}", self.name));
            }
        }
    }
}
