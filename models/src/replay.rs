//! Forwards as CUDA graphs: recorded once for each shape, and replayed for every batch that fits.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::libtorch::Graph;

/// Recorded shapes of one function: all buckets of a few sizes. Others run as they are.
const SHAPES_MAX: usize = 48;
/// Runs before a shape is recorded: libtorch chooses kernels and makes work spaces in the first.
pub(crate) const RUNS_BEFORE: usize = 2;

static FALLBACKS: AtomicU64 = AtomicU64::new(0);

/// How many forwards of this process ran without the graph that they should have had.
pub fn graph_fallbacks() -> u64 {
    FALLBACKS.load(Ordering::Relaxed)
}

/// Counts one.
pub(crate) fn count_fallback() {
    FALLBACKS.fetch_add(1, Ordering::Relaxed);
}

/// The size that a batch is filled up to: a power of two.
pub(crate) fn bucket(batch: i64) -> i64 {
    u64::try_from(batch).map_or(1, |batch| batch.next_power_of_two().cast_signed())
}

/// The buckets of batches up to `max_batch`, the largest first: smaller graphs find room in its memory.
pub(crate) fn buckets(max_batch: usize) -> Vec<usize> {
    let largest = max_batch.next_power_of_two();
    std::iter::successors(Some(largest), |size| (*size > 1).then_some(size / 2))
        .map(|size| size.min(max_batch))
        .collect()
}

/// A model's functions of a batch by their graphs, which have their memory in common. Every output has the batch as its
/// first dimension, and no row depends on another. A function runs no other of the same graphs.
#[derive(Debug)]
pub(crate) struct Replays {
    is_on: bool,
    recorded: RefCell<Vec<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    function: &'static str,
    /// Of the inputs, filled up, and their kinds.
    shapes: Vec<(Vec<i64>, Kind)>,
    /// `None`: cannot be recorded.
    graph: Option<Graph>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Replays {
    /// With none, functions run as they are.
    pub(crate) fn new(is_on: bool) -> Self {
        Self { is_on, recorded: RefCell::default() }
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
        if !self.is_on {
            return Ok(forward(&copies()));
        }
        let batch = inputs.first().map_or(0, |input| input.size()[0]);
        let filled = |input: &&Tensor| {
            let mut shape = input.size();
            if let Some(rows) = shape.first_mut() {
                *rows = bucket(batch);
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
            recorded.push(one);
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
}

fn record(
    function: &'static str,
    shapes: Vec<(Vec<i64>, Kind)>,
    inputs: &[&Tensor],
    before: Option<&Graph>,
    forward: &impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Recorded {
    let held: Vec<Tensor> = shapes
        .iter()
        .zip(inputs)
        .map(|((shape, kind), input)| Tensor::zeros(shape, (*kind, input.device())))
        .collect();
    for _ in 0..RUNS_BEFORE {
        let _warm = forward(&held);
    }
    match Graph::capture(before, || forward(&held)) {
        Ok((graph, outputs)) => Recorded { function, shapes, graph: Some(graph), inputs: held, outputs },
        Err(error) => {
            tracing::warn!(%error, function, ?shapes, "runs without a CUDA graph");
            Recorded { function, shapes, graph: None, inputs: Vec::new(), outputs: Vec::new() }
        }
    }
}
