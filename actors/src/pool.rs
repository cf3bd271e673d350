//! The CPU threads that decode and resize, so that no actor and no model waits for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use concord_models::set_cpu_threads;
use tokio::sync::oneshot;

/// A fixed number of threads. What waits for them is bounded by who may put it there: admitted requests.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<rayon::ThreadPool>);

/// The work panicked, or the pool is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub(crate) struct PoolError;

impl Pool {
    /// With this many threads.
    ///
    /// # Errors
    /// When the operating system gives none.
    pub(crate) fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("cpu-{index}"))
            // One image a thread: resizing must not spread over the cores that the other threads use.
            .start_handler(|_| set_cpu_threads(1))
            .build()?;
        Ok(Self(Arc::new(pool)))
    }

    /// Runs `work` on one of the threads. A panic in it drops what it owns and goes no further.
    pub(crate) fn spawn(&self, work: impl FnOnce() + Send + 'static) {
        self.0.spawn_fifo(move || _ = catch_unwind(AssertUnwindSafe(work)));
    }

    /// The result of `work`.
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
