//! Forwards as CUDA graphs: recorded once for each shape, and replayed for every batch that fits.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::libtorch::{Graph, LibtorchError, release_unused_memory};
use crate::runtime::autotune::warming_up;

/// Recorded shapes of one function: all buckets of a few sizes. Others run as they are.
const SHAPES_MAX: usize = 48;
/// Runs before a shape is recorded: libtorch chooses kernels and makes work spaces in the first.
pub(crate) const RUNS_BEFORE: usize = 2;

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Those of this thread that have not been taken: a model's forwards run on its thread, so these are its own.
    static FALLBACKS_HERE: Cell<u64> = const { Cell::new(0) };
}

/// How many forwards of this process ran without the graph that they should have had.
pub fn graph_fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// Counts one.
pub(crate) fn count_fallback() {
    FALLBACKS.fetch_add(1, Ordering::Relaxed);
    FALLBACKS_HERE.with(|here| here.set(here.get() + 1));
}

/// How many there were on this thread since this was asked last.
pub(crate) fn take_fallbacks_here() -> u64 {
    FALLBACKS_HERE.with(Cell::take)
}

/// The size that a batch is filled up to: one of `sizes`, which ascend, or where there are none a power of two. `None`
/// where it is larger than all of them.
fn bucket(batch: i64, sizes: &[usize]) -> Option<i64> {
    let batch = usize::try_from(batch).unwrap_or(1);
    let size = match sizes {
        [] => Some(batch.next_power_of_two()),
        sizes => sizes.iter().copied().find(|size| *size >= batch),
    };
    size.and_then(|size| i64::try_from(size).ok())
}

/// The buckets of batches up to `max_batch`, the largest first: smaller graphs find room in its memory. Those of `sizes`
/// and `max_batch` itself, or powers of two where there are none.
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

/// A model's functions of a batch by their graphs, which have their memory in common. Every output has the batch as its
/// first dimension, and no row depends on another. A function runs no other of the same graphs.
#[derive(Debug)]
pub(crate) struct CudaGraphCache {
    is_on: bool,
    /// What batches are filled up to, ascending; none: powers of two.
    sizes: Vec<usize>,
    /// Whether the reason for a fallback has been told: once is enough.
    has_told: Cell<bool>,
    recorded: RefCell<Vec<Recorded>>,
}

/// Of the inputs, filled up, and their kinds.
type Shapes = Vec<(Vec<i64>, Kind)>;

#[derive(Debug)]
struct Recorded {
    function: &'static str,
    shapes: Shapes,
    /// `None`: cannot be recorded.
    graph: Option<Graph>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl CudaGraphCache {
    /// With none, functions run as they are.
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, sizes: Vec::new(), has_told: Cell::default(), recorded: RefCell::default() }
    }

    /// With batches filled up to these sizes, ascending; none: powers of two.
    pub(crate) fn with_sizes(is_on: bool, sizes: Vec<usize>) -> Self {
        Self { sizes, ..Self::new(is_on) }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The outputs of `forward` for these inputs, which have the batch as their first dimension, and behind them for
    /// those that are the same for the whole batch.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn run(
        &self,
        inputs: &[&Tensor],
        shared: &[&Tensor],
        forward: impl Fn(&[Tensor]) -> Vec<Tensor>,
    ) -> Result<Vec<Tensor>, ModelError> {
        self.run_as("", inputs, shared, forward)
    }

    /// The same for a model with several functions, each by a name of its own.
    ///
    /// # Errors
    /// When libtorch refuses.
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
            // One that cannot be recorded has no memory to share.
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
        // The next replay writes to the same place.
        Ok(one.outputs.iter().map(|output| output.narrow(0, 0, batch).copy()).collect())
    }

    /// A shape that runs as it is from now on, and why: told once, for the next shapes have the same reason.
    fn fall_back(&self, function: &'static str, shapes: Shapes, error: &LibtorchError) -> Recorded {
        if !self.has_told.replace(true) {
            tracing::warn!(%error, function, ?shapes, "runs without a CUDA graph");
        }
        Recorded { function, shapes, graph: None, inputs: Vec::new(), outputs: Vec::new() }
    }
}

/// The shape with its graph, or why it has none.
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
    // What the runs took; the graph has memory of its own.
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
            // On a CPU there is no graph of anything.
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
