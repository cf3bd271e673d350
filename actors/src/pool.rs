//! The pool of CPU threads that decode and resize, so that no actor and no model waits for that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use concord_models::set_cpu_threads;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A fixed number of threads. Their queue is bounded by who may fill it: admitted requests.
#[derive(Debug, Clone)]
pub(crate) struct Pool(mpsc::Sender<Job>);

/// The error of work that panicked, or whose pool is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub(crate) struct PoolError;

impl Pool {
    /// Starts the threads, which end when the last clone of the pool is gone.
    ///
    /// # Errors
    /// When the operating system cannot start a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        // One thread waits in the channel, the others for the lock.
        let jobs = Arc::new(Mutex::new(jobs));
        for index in 0..threads {
            let jobs = Arc::clone(&jobs);
            let next = move || jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            std::thread::Builder::new().name(format!("cpu-{index}")).spawn(move || {
                // One image a thread: resizing must not spread over the cores that the other threads use.
                set_cpu_threads(1);
                while let Ok(job) = next() {
                    let _panicked = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(Self(sender))
    }

    /// Runs `work` on one of the threads. A panic in it drops what it owns and goes no further.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        // The threads live as long as `self`.
        let _sent = self.0.send(Box::new(work));
    }

    /// Runs `work` on one of the threads and returns its result.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (result, done) = oneshot::channel();
        self.spawn(move || _ = result.send(work()));
        done.await.map_err(|_| PoolError)
    }
}
