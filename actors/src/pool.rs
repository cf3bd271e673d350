//! The pool of CPU threads that decode and resize, so that no actor and no model waits for that. Small images
//! and large ones have threads of their own, so that a small one never waits behind a large one, and work on
//! requests under way goes before that of new ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use concord_models::set_cpu_threads;
use crossbeam_channel::{Receiver, Sender, never, select_biased, unbounded};
use tokio::sync::oneshot;

/// The largest image that counts as small, in pixels: just above full HD. One of these is decoded and resized in
/// some tens of milliseconds, the largest allowed one in seconds.
const SMALL_PIXELS: u64 = 1 << 21;
/// The nice value of the threads for large images. They get about a third of a core that a thread for small
/// images or a model wants as well, and all of one that nobody else wants.
const LARGE_NICENESS: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// The threads that a piece of work is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Images of a few megapixels, and what takes no longer.
    Small,
    /// Larger images.
    Large,
}

/// The place of a piece of work in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before everything new: its request is under way.
    Continued,
    /// Behind all that is there.
    New,
}

/// Two fixed groups of threads. Their queues are bounded by who may fill them: admitted requests.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    small: LaneSender,
    large: LaneSender,
}

#[derive(Debug, Clone)]
struct LaneSender {
    continued: Sender<Job>,
    new: Sender<Job>,
}

#[derive(Clone)]
struct LaneReceiver {
    continued: Receiver<Job>,
    new: Receiver<Job>,
}

/// The error of work that panicked, or whose pool is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work panicked")]
pub(crate) struct PoolError;

impl Lane {
    /// Returns the lane of an image of this declared width and height, if it declares any.
    pub(crate) fn of(size: Option<[u32; 2]>) -> Self {
        let pixels = size.map_or(0, |[width, height]| u64::from(width) * u64::from(height));
        if pixels <= SMALL_PIXELS { Self::Small } else { Self::Large }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Small => "cpu",
            Self::Large => "cpu-large",
        }
    }
}

impl Pool {
    /// Starts so many threads for each lane. They end when the last clone of the pool is gone.
    ///
    /// # Errors
    /// When the operating system cannot start a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        Ok(Self { small: start(Lane::Small, threads)?, large: start(Lane::Large, threads)? })
    }

    /// Runs `work` on a thread of the lane. A panic in it drops what it owns and goes no further.
    pub(crate) fn spawn(&self, lane: Lane, order: Order, work: impl FnOnce() + Send + 'static) {
        let lane = match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        };
        let queue = match order {
            Order::Continued => &lane.continued,
            Order::New => &lane.new,
        };
        // The threads live as long as `self`.
        let _sent = queue.send(Box::new(work));
    }

    /// Runs `work` on a thread of the lane, behind all that is there, and returns its result.
    ///
    /// # Errors
    /// When it panics.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        let (result, done) = oneshot::channel();
        self.spawn(lane, Order::New, move || _ = result.send(work()));
        done.await.map_err(|_| PoolError)
    }
}

fn start(lane: Lane, threads: usize) -> std::io::Result<LaneSender> {
    let ((continued, continued_jobs), (new, new_jobs)) = (unbounded(), unbounded());
    let jobs = LaneReceiver { continued: continued_jobs, new: new_jobs };
    for index in 0..threads {
        let jobs = jobs.clone();
        std::thread::Builder::new().name(format!("{}-{index}", lane.name())).spawn(move || {
            // One image a thread: resizing must not spread over the cores that the other threads use.
            set_cpu_threads(1);
            if lane == Lane::Large {
                yield_to_others();
            }
            jobs.work();
        })?;
    }
    Ok(LaneSender { continued, new })
}

impl LaneReceiver {
    /// Runs jobs until both queues are closed and empty.
    fn work(mut self) {
        loop {
            // A queue that is closed and empty would always be ready.
            let job = select_biased! {
                recv(self.continued) -> job => job.inspect_err(|_| self.continued = never()),
                recv(self.new) -> job => job,
            };
            match job {
                Ok(job) => _ = catch_unwind(AssertUnwindSafe(job)),
                // Both ends are dropped at once, so that the other one is empty or gone as well.
                Err(_) if self.new.is_empty() => return,
                Err(_) => {}
            }
        }
    }
}

/// Lowers the priority of this thread, as Linux allows for each thread by itself.
fn yield_to_others() {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), LARGE_NICENESS) {
        tracing::debug!(%error, "the threads for large images run at the priority of the others");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn requests_under_way_go_first_and_small_images_do_not_wait_for_large_ones() {
        let pool = Pool::new(1).unwrap();
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        pool.spawn(Lane::Large, Order::New, move || {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
        });
        has_begun.recv().unwrap();
        let (done, order) = mpsc::channel();
        for (lane, place, name) in [
            (Lane::Large, Order::New, "new"),
            (Lane::Large, Order::Continued, "continued"),
            (Lane::Small, Order::New, "small"),
        ] {
            let done = done.clone();
            pool.spawn(lane, place, move || done.send(name).unwrap());
        }
        assert_eq!(order.recv().unwrap(), "small");
        go_on.send(()).unwrap();
        assert_eq!([order.recv().unwrap(), order.recv().unwrap()], ["continued", "new"]);
    }

    #[tokio::test]
    async fn a_panic_ends_its_work_and_the_pool_goes_on() {
        let pool = Pool::new(1).unwrap();
        let outcome = pool.run(Lane::Small, || -> u8 { panic!("as planned") }).await;
        assert_eq!(outcome, Err(PoolError));
        assert_eq!(pool.run(Lane::Small, || 7).await, Ok(7));
    }
}
