//! CUDA graphs of forward passes: recorded once for each shape, and replayed for every batch that fits.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::libtorch::{Graph, LibtorchError, release_unused_memory};
use crate::runtime::autotune::warming_up;

/// The largest number of recorded shapes of one function, enough for all buckets of a few image sizes. Other
/// shapes run without a graph.
const SHAPES_MAX: usize = 48;
/// The runs before a shape is recorded: in the first ones libtorch chooses kernels and allocates workspaces.
pub(crate) const RUNS_BEFORE: usize = 2;

/// The fallbacks of this process.
static FALLBACKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The fallbacks of this thread that have not been taken yet. A model's forwards run on its own thread,
    /// so these are its own.
    static FALLBACKS_HERE: Cell<u64> = const { Cell::new(0) };
}

/// Returns the number of forwards in this process that ran without the graph that they should have had.
pub fn graph_fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// Counts one fallback.
pub(crate) fn count_fallback() {
    FALLBACKS.fetch_add(1, Ordering::Relaxed);
    FALLBACKS_HERE.with(|here| here.set(here.get() + 1));
}

/// Returns the number of fallbacks on this thread since the last call.
pub(crate) fn take_fallbacks_here() -> u64 {
    FALLBACKS_HERE.with(Cell::take)
}

/// Returns the size that a batch is padded to: the next one of `sizes`, which ascend, or a power of two if
/// there are none. Returns `None` if the batch is larger than all of them.
fn bucket(batch: i64, sizes: &[usize]) -> Option<i64> {
    let batch = usize::try_from(batch).unwrap_or(1);
    let size = match sizes {
        [] => Some(batch.next_power_of_two()),
        sizes => sizes.iter().copied().find(|size| *size >= batch),
    };
    size.and_then(|size| i64::try_from(size).ok())
}

/// Returns the buckets of batches up to `max_batch`, the largest first, so that smaller graphs find room in
/// its memory. They are `max_batch` itself and the smaller ones of `sizes`, or powers of two if there are
/// none.
pub(crate) fn buckets(max_batch: usize, sizes: &[usize]) -> Vec<usize> {
    let mut buckets = vec![max_batch];
    if sizes.is_empty() {
        let half = max_batch.next_power_of_two() / 2;
        buckets.extend(std::iter::successors(Some(half), |size| Some(size / 2)).take_while(|size| *size > 0));
    } else {
        buckets.extend(sizes.iter().rev().copied().filter(|size| *size < max_batch));
    }
    buckets
}

/// The CUDA graphs of a model's functions of a batch, which share their memory. The batch is the first
/// dimension of every output, and no row depends on another. A function must not run another one of the same
/// cache.
#[derive(Debug)]
pub(crate) struct CudaGraphCache {
    is_on: bool,
    /// The sizes that batches are padded to, ascending; powers of two if empty.
    sizes: Vec<usize>,
    /// Says whether the reason for a fallback has been logged: once is enough.
    has_told: Cell<bool>,
    recorded: RefCell<Vec<Recorded>>,
}

/// The sizes of the padded inputs, and their number formats.
type Shapes = Vec<(Vec<i64>, Kind)>;

/// A shape of a function, with its graph and the tensors that the graph reads and writes.
#[derive(Debug)]
struct Recorded {
    function: &'static str,
    shapes: Shapes,
    /// The graph, or `None` if the shape cannot be recorded.
    graph: Option<Graph>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl CudaGraphCache {
    /// Creates an empty cache. If `is_on` is false, functions run without graphs.
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, sizes: Vec::new(), has_told: Cell::default(), recorded: RefCell::default() }
    }

    /// Creates an empty cache whose batches are padded to these sizes, ascending; powers of two if empty.
    pub(crate) fn with_sizes(is_on: bool, sizes: Vec<usize>) -> Self {
        Self { sizes, ..Self::new(is_on) }
    }

    /// Returns whether functions run by graphs.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Returns the outputs of `forward` for `inputs`, whose first dimension is the batch, followed by the
    /// `shared` inputs, which are the same for the whole batch.
    ///
    /// # Errors
    /// Returns an error if libtorch fails.
    pub(crate) fn run(
        &self,
        inputs: &[&Tensor],
        shared: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<Vec<Tensor>, ModelError> {
        self.run_as("", inputs, shared, forward)
    }

    /// Does the same as [`Self::run`] for a model with several functions, each with a name of its own.
    ///
    /// # Errors
    /// Returns an error if libtorch fails.
    pub(crate) fn run_as(
        &self,
        function: &'static str,
        inputs: &[&Tensor],
        shared: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<Vec<Tensor>, ModelError> {
        let all: Vec<&Tensor> = inputs.iter().chain(shared).copied().collect();
        let copies = || all.iter().map(|input| input.shallow_clone()).collect::<Vec<_>>();
        let batch = inputs.first().map_or(0, |input| input.size()[0]);
        let Some(rows) = bucket(batch, &self.sizes).filter(|_| self.is_on) else {
            return Ok(forward(&copies()));
        };
        let filled = |input: &&Tensor| {
            let mut shape = input.size();
            if let Some(first) = shape.first_mut() {
                *first = rows;
            }
            (shape, input.kind())
        };
        let as_is = |input: &&Tensor| (input.size(), input.kind());
        let shapes: Vec<_> = inputs.iter().map(filled).chain(shared.iter().map(as_is)).collect();
        let mut recorded = self.recorded.borrow_mut();
        let of_function = || recorded.iter().filter(|one| one.function == function);
        let mut place = recorded.iter().position(|one| one.function == function && one.shapes == shapes);
        if place.is_none() && of_function().count() < SHAPES_MAX {
            // A shape that could not be recorded has no memory to share.
            let before = recorded.iter().rev().find_map(|one| one.graph.as_ref());
            let one = record(function, shapes, &all, before, &forward);
            recorded.push(one.unwrap_or_else(|(shapes, error)| self.fall_back(function, shapes, &error)));
            place = Some(recorded.len() - 1);
        }
        let one = place.map(|place| &recorded[place]);
        let Some((one, graph)) = one.and_then(|one| Some((one, one.graph.as_ref()?))) else {
            count_fallback();
            return Ok(forward(&copies()));
        };
        for (held, input) in one.inputs.iter().zip(&all) {
            held.narrow(0, 0, input.size()[0]).f_copy_(input)?;
        }
        graph.replay()?;
        // The outputs are copied because the next replay writes to the same memory.
        Ok(one.outputs.iter().map(|output| output.narrow(0, 0, batch).copy()).collect())
    }

    /// Returns a shape that runs without a graph from now on. The reason is logged once, since it will be the
    /// same for the next shapes.
    fn fall_back(&self, function: &'static str, shapes: Shapes, error: &LibtorchError) -> Recorded {
        if !self.has_told.replace(true) {
            tracing::warn!(%error, function, ?shapes, "runs without a CUDA graph");
        }
        Recorded { function, shapes, graph: None, inputs: Vec::new(), outputs: Vec::new() }
    }
}

/// Records a shape; returns it with its graph, or the reason why there is none.
fn record(
    function: &'static str,
    shapes: Shapes,
    inputs: &[&Tensor],
    before: Option<&Graph>,
    forward: &impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Result<Recorded, (Shapes, LibtorchError)> {
    let held: Vec<Tensor> = shapes
        .iter()
        .zip(inputs)
        .map(|((shape, kind), input)| Tensor::zeros(shape, (*kind, input.device())))
        .collect();
    for _ in 0..RUNS_BEFORE {
        let _warm = warming_up(|| forward(&held));
    }
    let captured = Graph::capture(before, || forward(&held));
    // This is the memory of the warm-up runs; the graph has memory of its own.
    release_unused_memory(held.first().map_or(tch::Device::Cpu, Tensor::device));
    match captured {
        Ok((graph, outputs)) => Ok(Recorded { function, shapes, graph: Some(graph), inputs: held, outputs }),
        Err(error) => Err((shapes, error)),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{CudaGraphCache, bucket, buckets, graph_fallbacks, take_fallbacks_here};

    #[test]
    fn a_batch_is_filled_up_to_the_next_size() {
        for (batch, sizes, expected) in [
            (1, &[] as &[usize], Some(1)),
            (5, &[], Some(8)),
            (3, &[2, 6], Some(6)),
            (2, &[2, 6], Some(2)),
            (7, &[2, 6], None),
        ] {
            assert_eq!(bucket(batch, sizes), expected, "{batch} of {sizes:?}");
        }
    }

    #[test]
    fn what_is_warmed_up_ends_with_the_smallest() {
        for (max_batch, sizes, expected) in [
            (8, &[] as &[usize], vec![8, 4, 2, 1]),
            (6, &[], vec![6, 4, 2, 1]),
            (1, &[], vec![1]),
            (8, &[1, 4, 8], vec![8, 4, 1]),
            // Larger batches run, too, though without a graph.
            (8, &[2, 3], vec![8, 3, 2]),
        ] {
            assert_eq!(buckets(max_batch, sizes), expected, "{max_batch} with {sizes:?}");
        }
    }

    #[test]
    fn a_graph_that_cannot_be_is_a_fallback_with_the_same_outputs() {
        if crate::libtorch::cuda_devices() > 0 {
            eprintln!("skipped: there is a GPU, where another test counts the fallbacks of the process");
            return;
        }
        let graphs = CudaGraphCache::new(true);
        let forward = |inputs: &[Tensor]| vec![&inputs[0] * 2 + &inputs[1]];
        let shared = Tensor::from(3.0f32);
        let before = graph_fallbacks();
        take_fallbacks_here();
        for batch in [3, 3, 1] {
            // A CPU can record no graph.
            let x = Tensor::arange(batch, (Kind::Float, Device::Cpu));
            let outputs = graphs.run(&[&x], &[&shared], forward).unwrap();
            assert_eq!(outputs, forward(&[x, shared.shallow_clone()]));
        }
        assert_eq!(take_fallbacks_here(), 3);
        assert_eq!(take_fallbacks_here(), 0, "they have been taken");
        assert!(graph_fallbacks() >= before + 3, "and count for the process");
    }

    #[test]
    fn a_batch_above_all_sizes_runs_as_it_is_and_is_no_fallback() {
        let graphs = CudaGraphCache { sizes: vec![1, 2], ..CudaGraphCache::new(true) };
        take_fallbacks_here();
        let x = Tensor::ones([3, 2], (Kind::Float, Device::Cpu));
        let outputs = graphs.run(&[&x], &[], |inputs| vec![&inputs[0] + 1]).unwrap();
        assert_eq!((outputs[0].size(), take_fallbacks_here()), (vec![3, 2], 0));
    }
}
