//! CUDA graphs: work that is recorded once and repeated as a whole.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ffi::RawGraph;
use super::{LibtorchError, load_cuda_part};

/// Recorded work on a GPU. What it reads and writes must stay where it was.
#[derive(Debug)]
pub struct Graph(RawGraph);

impl Graph {
    /// Records what `work` puts on the thread's current stream, which must not be the default one; nothing of it runs
    /// yet. Its tensors live in memory of the graph's own, or in that of another graph that never runs at the same
    /// time. They stay valid as long as the graph.
    ///
    /// # Errors
    /// When graphs cannot be had (see [`load_cuda_part`]), or `work` does what cannot be recorded, such as waiting for
    /// the device.
    pub fn capture<T>(
        shares_memory_with: Option<&Self>,
        work: impl FnOnce() -> T,
    ) -> Result<(Self, T), LibtorchError> {
        load_cuda_part()?;
        let mut graph = RawGraph::begin(shares_memory_with.map(|graph| &graph.0))?;
        // tch panics where libtorch throws; the stream must be released from recording all the same.
        let result = catch_unwind(AssertUnwindSafe(work));
        let ended = graph.end();
        let result = result.map_err(|panic| {
            let message = panic.downcast::<String>().map_or_else(|_| String::new(), |message| *message);
            LibtorchError(format!("cannot be recorded: {message}"))
        })?;
        ended?;
        Ok((Self(graph), result))
    }

    /// Runs what was recorded, on the thread's current stream.
    ///
    /// # Errors
    /// When CUDA refuses.
    pub fn replay(&self) -> Result<(), LibtorchError> {
        self.0.replay()
    }
}
