//! CUDA graphs: work that is recorded once and replayed as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ffi::RawGraph;
use super::{LibtorchError, load_cuda_part};

/// Recorded work on a GPU. The memory that it reads and writes must stay where it was.
#[derive(Debug)]
pub struct Graph(RawGraph);

impl Graph {
    /// Records what `work` enqueues on the thread's current stream, which must not be the default one.
    /// Nothing runs yet. The tensors of `work` live in memory of the graph's own, or in that of another graph
    /// that never runs at the same time, and stay valid as long as the graph.
    ///
    /// # Errors
    /// Returns an error if graphs are not available (see [`load_cuda_part`]), or if `work` does something
    /// that cannot be recorded, such as waiting for the device.
    pub fn capture<T>(
        shares_memory_with: Option<&Self>,
        work: impl FnOnce() -> T,
    ) -> Result<(Self, T), LibtorchError> {
        load_cuda_part()?;
        let mut graph = RawGraph::begin(shares_memory_with.map(|graph| &graph.0))?;
        // tch panics where libtorch throws; recording must end all the same, so that the stream is free
        // again.
        let result = catch_unwind(AssertUnwindSafe(work));
        let ended = graph.end();
        let result = result.map_err(|panic| {
            let message = panic.downcast::<String>().map_or_else(|_| String::new(), |message| *message);
            LibtorchError(format!("cannot be recorded: {message}"))
        })?;
        ended?;
        Ok((Self(graph), result))
    }

    /// Replays the recorded work, on the thread's current stream.
    ///
    /// # Errors
    /// Returns an error if CUDA fails.
    pub fn replay(&self) -> Result<(), LibtorchError> {
        self.0.replay()
    }
}
