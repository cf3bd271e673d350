//! The Model actor: starts a model's thread, and starts it again when it dies. The model itself is the thread's, see
//! `worker`; images come to it by way of its `handle`.
//!
//! Images do not pass through the actor's mailbox: on an idle machine of two cores each change of thread costs 0.1 ms
//! and more, and the places of the handle admit as a mailbox would (`make bench`, router-added latency).

mod handle;
mod queue;
mod reply;
mod seat;
mod text;
mod worker;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Context, Handler, Message};

pub(crate) use self::handle::{AskedText, ModelHandle, Place, Prepared, Running};
pub(crate) use self::reply::{Reply, VoteReply};
pub use self::seat::Loader;
pub(crate) use self::seat::Seat;
pub(crate) use self::text::Writer;
pub use self::text::{TextEvent, Written};

use self::queue::Queue;
use self::worker::{Exit, Limits, Worker};
use crate::fatal::Fatal;
use crate::metrics::Metrics;

/// How long a thread that panicked is left before it starts again, at first; doubled up to the maximum while nothing
/// succeeds. A model is back within a second.
const RESTART_DELAY: Duration = Duration::from_millis(5);
const RESTART_DELAY_MAX: Duration = Duration::from_millis(500);

/// The model's thread has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct WorkerExited(Exit);

/// The actor.
#[derive(Debug)]
pub(crate) struct ModelActor {
    name: Arc<str>,
    queue: Arc<Queue>,
    /// The weights, which outlive the thread. A lock, because a thread that died cannot hand them over; held by the
    /// one thread that runs.
    seat: Arc<Mutex<Seat>>,
    limits: Limits,
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
        self.start_worker(Duration::ZERO, context);
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
