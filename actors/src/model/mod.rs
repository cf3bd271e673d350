//! The Model actor: admits images to one model, has them made ready, starts its thread again when it dies, and
//! reports. The model itself is the thread's, see `worker`.

mod handle;
mod queue;
mod reply;
mod seat;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, Message};
use concord_models::{Preprocessor, RgbImage, TaskId};

pub(crate) use self::handle::{ModelHandle, Place, Prepared, Running};
pub(crate) use self::reply::{Reply, VoteReply};
pub use self::seat::Loader;
pub(crate) use self::seat::Seat;

use self::queue::{Entry, Queue};
use self::worker::{Exit, Limits, Worker};
use crate::Trace;
use crate::fatal::Fatal;
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::ticket::Ticket;

/// How long a thread that panicked is left before it starts again, at first; doubled up to the maximum while nothing
/// succeeds. A model is back within a second.
const RESTART_DELAY: Duration = Duration::from_millis(5);
const RESTART_DELAY_MAX: Duration = Duration::from_millis(500);

/// Asks a model for a vote; the place has been reserved.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Ask {
    pub(crate) task: TaskId,
    pub(crate) image: Arc<RgbImage>,
    pub(crate) ticket: Arc<Ticket>,
    pub(crate) trace: Trace,
    pub(crate) place: Place,
    pub(crate) reply: Reply,
}

/// The model's thread has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WorkerExited(Exit);

/// The actor.
#[derive(Debug)]
pub(crate) struct ModelActor {
    name: Arc<str>,
    preprocessor: Arc<Preprocessor>,
    queue: Arc<Queue>,
    /// The weights, which outlive the thread. A lock, because a thread that died cannot hand them over; held by the
    /// one thread that runs.
    seat: Arc<Mutex<Seat>>,
    limits: Limits,
    pool: Pool,
    metrics: Metrics,
    fatal: Fatal,
    /// Panics since the last batch that succeeded.
    panics: u32,
    forwards_at_last_panic: u64,
}

impl ModelActor {
    /// Starts the thread.
    fn start_worker(&self, delay: Duration, context: &Context<Self>) {
        let worker = Worker {
            name: Arc::clone(&self.name),
            queue: Arc::clone(&self.queue),
            limits: self.limits,
            metrics: self.metrics.clone(),
        };
        let seat = Arc::clone(&self.seat);
        let address = actix::AsyncContext::address(context);
        let thread = move || {
            // Not by a timer of the actor: its mailbox comes before its timers.
            std::thread::sleep(delay);
            // A seat is as good after a panic as before it: forwards do not change it.
            let mut seat = seat.lock().unwrap_or_else(PoisonError::into_inner);
            let exit = worker.run(&mut seat);
            drop(seat);
            // `do_send` ignores the mailbox's bound, and one message a thread is a bound.
            address.do_send(WorkerExited(exit));
        };
        let name = format!("model-{}", self.name);
        if let Err(error) = std::thread::Builder::new().name(name).spawn(thread) {
            self.fatal.raise(format!("model {}: no thread: {error}", self.name));
        }
    }

    fn forwards(&self) -> u64 {
        self.metrics.forwards.with_label_values(&[&*self.name]).get()
    }
}

impl Actor for ModelActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // As many messages as there are places: whoever has a place finds room.
        context.set_mailbox_capacity(self.queue.capacity());
        self.start_worker(Duration::ZERO, context);
    }
}

impl Handler<Ask> for ModelActor {
    type Result = ();

    fn handle(&mut self, ask: Ask, _: &mut Self::Context) {
        let (preprocessor, queue) = (Arc::clone(&self.preprocessor), Arc::clone(&self.queue));
        let (name, metrics) = (Arc::clone(&self.name), self.metrics.clone());
        self.pool.spawn(move || {
            if let Some(why) = ask.ticket.unwanted() {
                metrics.dropped.with_label_values(&[&*name, why.name()]).inc();
                return ask.reply.expired();
            }
            let started = Instant::now();
            match preprocessor.apply(&ask.image) {
                Ok(pixels) => {
                    let preprocess = started.elapsed();
                    metrics
                        .phase_seconds
                        .with_label_values(&["preprocess"])
                        .observe(preprocess.as_secs_f64());
                    let Ask { task, ticket, trace, place, reply, .. } = ask;
                    let queued = Instant::now();
                    queue.push(Entry { task, pixels, ticket, trace, place, reply, preprocess, queued });
                }
                Err(error) => ask.reply.failed(error.to_string()),
            }
        });
    }
}

impl Handler<WorkerExited> for ModelActor {
    type Result = ();

    fn handle(&mut self, WorkerExited(exit): WorkerExited, context: &mut Self::Context) {
        match exit {
            Exit::Closed => {}
            Exit::Panicked(message) => {
                let forwards = self.forwards();
                self.panics = if forwards == self.forwards_at_last_panic { self.panics + 1 } else { 0 };
                self.forwards_at_last_panic = forwards;
                let delay = RESTART_DELAY.saturating_mul(1 << self.panics.min(16)).min(RESTART_DELAY_MAX);
                tracing::error!(
                    model = &*self.name,
                    message,
                    ?delay,
                    "the model's thread panicked, and starts again"
                );
                self.metrics.restarts.with_label_values(&[&*self.name]).inc();
                self.start_worker(delay, context);
            }
            Exit::DeviceLost(message) => {
                self.queue.close();
                self.fatal.raise(format!("model {}: {message}", self.name));
            }
        }
    }
}
