//! Runs one step of an autoregressive decoder as a function over fixed buffers, and decodes greedily with it.

use std::cell::RefCell;
use std::ops::ControlFlow;

use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::generation::static_cache::{DecoderSizes, StaticCache};
use crate::libtorch::Graph;
use crate::runtime::autotune::warming_up;
use crate::runtime::cuda_graphs::{RUNS_BEFORE, count_fallback};

/// The most sets of buffers that a model keeps for its next texts (the most recently used ones), and the
/// largest capacity that is kept: 2048 positions of Molmo2-8B take 300 MB.
const KEPT_MAX: usize = 4;
const KEPT_CAPACITY_MAX: i64 = 2048;

/// A decoder in the middle of a text that advances one position with each step.
///
/// `step` can be captured in a CUDA graph. It has no arguments: it reads and writes only weights and the
/// tensors of its buffers, which keep their addresses as long as the buffers live, whichever text is in them.
/// It does not wait for the device, its shapes depend on the buffers' capacity alone, and it derives each
/// position from tensors on the device. A graph captured from one call therefore does for every later text in
/// the same buffers what a call would do.
///
/// Between steps, the host may call [`DecodeBuffers::begin`], [`DecodeBuffers::force`] and
/// [`DecodeBuffers::tokens`], which use the same buffers and are not part of the graph. A capture executes
/// nothing, but the warm-up runs before it advance the buffers, so `begin` has to be called after both. The
/// host counts positions, since a step cannot; [`Greedy::run`] ensures that there are no more than the
/// buffers have.
pub(crate) trait DecodeStep {
    /// Returns the buffers that the step reads and writes.
    fn buffers(&self) -> &DecodeBuffers;

    /// Reads the token at the current position, caches its keys and values, writes the logits that follow and
    /// the most probable token, and advances one position.
    fn step(&self) -> Result<(), ModelError>;
}

/// The buffers that the steps of a text read and write.
#[derive(Debug)]
pub(crate) struct DecodeBuffers {
    /// The keys and values of all positions.
    pub(crate) cache: StaticCache,
    capacity: i64,
    /// The tokens by position, [rows, capacity + 1]: the step at a position reads its token, and writes the
    /// next one.
    tokens: Tensor,
    /// The position of the next step, \[1\].
    position: Tensor,
    /// The logits that follow the current position, [rows, vocabulary], fp32.
    logits: Tensor,
    /// The positions 0, 1, 2, …, \[capacity\].
    places: Tensor,
    /// A bias that lets every position be attended to, [1, 1, 1, capacity].
    open: Tensor,
    /// The captured graph of the steps that use these buffers.
    recorded: RefCell<RecordedStep>,
}

/// The progress of a step towards its graph.
#[derive(Debug)]
enum RecordedStep {
    /// The step is not captured yet; the number of runs that come first.
    Not(usize),
    Graph(Graph),
    /// The step cannot be captured.
    Never,
}

impl DecodeBuffers {
    pub(crate) fn new(sizes: &DecoderSizes, rows: i64, capacity: i64) -> Self {
        let integers = (Kind::Int64, sizes.device);
        Self {
            cache: StaticCache::new(sizes, rows, capacity),
            capacity,
            tokens: Tensor::zeros([rows, capacity + 1], integers),
            position: Tensor::zeros([1], integers),
            logits: Tensor::zeros([rows, sizes.vocabulary], (Kind::Float, sizes.device)),
            places: Tensor::arange(capacity, integers),
            open: Tensor::zeros([1, 1, 1, capacity], (sizes.kind, sizes.device)),
            recorded: RefCell::new(RecordedStep::Not(RUNS_BEFORE)),
        }
    }

    /// Runs one step of the decoder that uses these buffers; after the first few, by replaying its graph.
    pub(crate) fn replay(&self, decoder: &dyn DecodeStep) -> Result<(), ModelError> {
        let mut recorded = self.recorded.borrow_mut();
        if let RecordedStep::Not(runs) = &mut *recorded
            && *runs > 0
        {
            *runs -= 1;
            return warming_up(|| decoder.step());
        }
        if matches!(*recorded, RecordedStep::Not(_)) {
            *recorded = match Graph::capture(None, || decoder.step()) {
                Ok((graph, Ok(()))) => RecordedStep::Graph(graph),
                Ok((_, Err(error))) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "texts are written without a CUDA graph");
                    RecordedStep::Never
                }
            };
        }
        match &*recorded {
            RecordedStep::Graph(graph) => Ok(graph.replay()?),
            _ => {
                count_fallback();
                decoder.step()
            }
        }
    }

    /// Returns the position of the next step, \[1\].
    pub(crate) fn position(&self) -> &Tensor {
        &self.position
    }

    /// Returns the logits that follow the last position, [rows, vocabulary], fp32.
    pub(crate) fn logits(&self) -> &Tensor {
        &self.logits
    }

    /// Returns the token at the current position, [rows, 1].
    pub(crate) fn token(&self) -> Tensor {
        self.tokens.index_select(1, &self.position)
    }

    /// Returns the bias on the attention logits of the current position, which masks all positions after it.
    pub(crate) fn bias(&self) -> Tensor {
        self.open.masked_fill(&self.places.gt_tensor(&self.position), f64::NEG_INFINITY)
    }

    /// Ends a step: writes the logits [rows, vocabulary] that follow and the most probable token, and
    /// advances the position.
    pub(crate) fn advance(&self, logits: &Tensor) {
        self.logits.shallow_clone().copy_(logits);
        self.advance_to_best();
    }

    /// Ends a step where [`Self::logits`] has been written already.
    pub(crate) fn advance_to_best(&self) {
        let (mut tokens, mut position) = (self.tokens.shallow_clone(), self.position.shallow_clone());
        let next = self.logits.argmax(-1, true);
        position += 1;
        let _written = tokens.index_copy_(1, &position, &next);
    }

    /// Begins a text after a prompt of `length` positions, whose keys and values the cache holds; `logits`
    /// are those that follow it.
    pub(crate) fn begin(&self, length: i64, logits: &Tensor) -> Result<(), ModelError> {
        self.check_room(length)?;
        let _filled = self.position.shallow_clone().fill_(length - 1);
        self.advance(logits);
        Ok(())
    }

    /// Begins a text with the given token at position 0.
    pub(crate) fn begin_with(&self, token: i64) {
        let _filled = self.position.shallow_clone().fill_(0);
        self.force(0, token);
    }

    /// Replaces the token at a position by another than the most probable one.
    pub(crate) fn force(&self, position: i64, token: i64) {
        let _filled = self.tokens.narrow(1, position, 1).fill_(token);
    }

    /// Returns the tokens of the first row at these positions; waits until they are written.
    fn tokens(&self, from: i64, count: i64) -> Result<Vec<i64>, ModelError> {
        let tokens = self.tokens.f_select(0, 0)?.f_narrow(0, from, count)?;
        Ok(Vec::<i64>::try_from(tokens.f_to_device(Device::Cpu)?)?)
    }

    /// Checks that there is room for the given number of positions.
    fn check_room(&self, positions: i64) -> Result<(), ModelError> {
        if positions <= self.capacity {
            return Ok(());
        }
        let capacity = self.capacity;
        Err(ModelError::Unsupported(format!(
            "the text needs {positions} positions, more than the {capacity} of its buffers"
        )))
    }
}

/// The settings of greedy decoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Greedy<'a> {
    /// The tokens that end a text; they are not part of the output.
    pub(crate) ends: &'a [i64],
    /// The most tokens that are generated.
    pub(crate) max_new_tokens: usize,
    /// The number of steps, at least 1, after which the tokens are read back. Reading waits for the device;
    /// with more than 1, the steps after the end of the text are wasted.
    pub(crate) steps_per_read: usize,
    /// True if steps are replayed from a graph.
    pub(crate) graphs: bool,
}

/// A text that was decoded greedily.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GreedyOutput {
    pub(crate) tokens: Vec<i64>,
    /// True if the text ended by itself, not at the maximum length or by a `Break`.
    pub(crate) ended: bool,
}

impl Greedy<'_> {
    /// Runs one step with these settings.
    pub(crate) fn step(&self, decoder: &dyn DecodeStep) -> Result<(), ModelError> {
        if self.graphs { decoder.buffers().replay(decoder) } else { decoder.step() }
    }

    /// Generates the most probable token until an end token, the maximum length, or a `Break`. Decodes one
    /// row, whose first token is already at position `begin`, that of the next step. `on_token` receives all
    /// tokens after each new one.
    pub(crate) fn run(
        &self,
        decoder: &dyn DecodeStep,
        begin: i64,
        on_token: &mut dyn FnMut(&[i64]) -> ControlFlow<()>,
    ) -> Result<GreedyOutput, ModelError> {
        let mut written = GreedyOutput::default();
        let buffers = decoder.buffers();
        // The last token is generated, but no step reads it.
        buffers.check_room(begin + (self.max_new_tokens as i64 - 1).max(0))?;
        let mut steps = 0;
        while written.tokens.len() < self.max_new_tokens {
            let known = written.tokens.len();
            let new = if known == 0 { 1 } else { self.steps_per_read.clamp(1, self.max_new_tokens - known) };
            while steps + 1 < known + new {
                self.step(decoder)?;
                steps += 1;
            }
            for token in buffers.tokens(begin + known as i64, new as i64)? {
                if self.ends.contains(&token) {
                    written.ended = true;
                    return Ok(written);
                }
                written.tokens.push(token);
                if on_token(&written.tokens).is_break() {
                    return Ok(written);
                }
            }
        }
        Ok(written)
    }
}

/// A pool of the buffers that a model keeps for its next texts: several shapes, each with the data that
/// belongs to it.
///
/// Buffers are taken out while they are used, so that a panic does not leave them to be used again.
#[derive(Debug)]
pub(crate) struct BufferPool<T>(RefCell<Vec<(BufferShape, T)>>);

/// The shape by which a text finds fitting buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BufferShape {
    pub(crate) capacity: i64,
    /// The number of positions of the cross-attended source, where there is one.
    pub(crate) source: i64,
}

impl<T> BufferPool<T> {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Uses the buffers of that shape, made by `new` where none are kept.
    pub(crate) fn with<R>(
        &self,
        shape: BufferShape,
        new: impl FnOnce() -> T,
        run: impl FnOnce(&T) -> R,
    ) -> R {
        let mut kept = self.0.borrow_mut();
        let place = kept.iter().position(|(of, _)| *of == shape);
        let taken = place.map(|place| kept.remove(place).1);
        drop(kept);
        let buffers = taken.unwrap_or_else(new);
        let result = run(&buffers);
        if shape.capacity <= KEPT_CAPACITY_MAX {
            let mut kept = self.0.borrow_mut();
            kept.push((shape, buffers));
            let surplus = kept.len().saturating_sub(KEPT_MAX);
            kept.drain(..surplus);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: DecoderSizes = DecoderSizes {
        layers: 1,
        heads: 1,
        head_width: 1,
        vocabulary: 10,
        kind: Kind::Float,
        device: Device::Cpu,
    };

    /// Counts on from the token that it reads.
    struct Counting {
        buffers: DecodeBuffers,
        steps: RefCell<usize>,
    }

    impl Counting {
        fn begin(capacity: i64, token: i64) -> Self {
            let buffers = DecodeBuffers::new(&SIZES, 1, capacity);
            buffers.begin_with(token);
            Self { buffers, steps: RefCell::new(0) }
        }
    }

    impl DecodeStep for Counting {
        fn buffers(&self) -> &DecodeBuffers {
            &self.buffers
        }

        fn step(&self) -> Result<(), ModelError> {
            *self.steps.borrow_mut() += 1;
            self.buffers.advance(&(self.buffers.token() + 1).one_hot(10).squeeze_dim(1).to_kind(Kind::Float));
            Ok(())
        }
    }

    #[test]
    fn tokens_are_read_back_one_by_one_or_several_at_once() {
        for (steps_per_read, ends, max_new_tokens, tokens, ended, steps) in [
            (1, vec![], 4, vec![3, 4, 5, 6], false, 3),
            (3, vec![], 4, vec![3, 4, 5, 6], false, 3),
            (9, vec![], 3, vec![3, 4, 5], false, 2),
            (1, vec![9, 5], 7, vec![3, 4], true, 2),
            (2, vec![6], 7, vec![3, 4, 5], true, 4),
            (4, vec![5], 7, vec![3, 4], true, 4),
            (1, vec![3], 7, vec![], true, 0),
            (1, vec![], 0, vec![], false, 0),
        ] {
            let counting = Counting::begin(8, 3);
            let mut seen = Vec::new();
            let written = Greedy { ends: &ends, max_new_tokens, steps_per_read, graphs: false }
                .run(&counting, 0, &mut |tokens| {
                    seen.push(tokens.len());
                    ControlFlow::Continue(())
                })
                .unwrap();
            let what = format!("{steps_per_read} steps a read, ends {ends:?}");
            assert_eq!(written, GreedyOutput { tokens: tokens.clone(), ended }, "{what}");
            assert_eq!(seen, (1..=tokens.len()).collect::<Vec<_>>(), "{what}");
            assert_eq!(*counting.steps.borrow(), steps, "{what}");
        }
    }

    #[test]
    fn a_break_ends_the_text() {
        let counting = Counting::begin(8, 0);
        let greedy = Greedy { ends: &[], max_new_tokens: 6, steps_per_read: 1, graphs: false };
        let stop = &mut |tokens: &[i64]| match tokens.len() {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let written = greedy.run(&counting, 0, stop).unwrap();
        assert_eq!(written, GreedyOutput { tokens: vec![0, 1], ended: false });
    }

    #[test]
    fn a_text_that_has_no_room_is_refused_before_it_begins() {
        for (max_new_tokens, fits) in [(5, true), (6, false), (100, false)] {
            let counting = Counting::begin(4, 0);
            let greedy = Greedy { ends: &[], max_new_tokens, steps_per_read: 1, graphs: false };
            let written = greedy.run(&counting, 0, &mut |_| ControlFlow::Continue(()));
            match written {
                Ok(written) => assert!(fits && written.tokens == [0, 1, 2, 3, 4], "{written:?}"),
                Err(error) => {
                    assert!(!fits && error.to_string().contains("more than the 4 of its buffers"), "{error}");
                }
            }
        }
        let buffers = DecodeBuffers::new(&SIZES, 1, 4);
        let logits = Tensor::zeros([1, 10], (Kind::Float, Device::Cpu));
        assert!(buffers.begin(4, &logits).is_ok());
        assert!(buffers.begin(5, &logits).unwrap_err().to_string().contains("needs 5 positions"));
    }

    #[test]
    fn only_the_present_and_the_past_are_open() {
        let buffers = DecodeBuffers::new(&SIZES, 1, 4);
        buffers.begin(3, &Tensor::zeros([1, 10], (Kind::Float, Device::Cpu))).unwrap();
        buffers.force(3, 7);
        assert_eq!(Vec::<i64>::try_from(buffers.token().view([-1])).unwrap(), [7]);
        let _filled = buffers.position().shallow_clone().fill_(1);
        let closed = f32::NEG_INFINITY;
        let bias = Vec::<f32>::try_from(buffers.bias().view([-1])).unwrap();
        assert_eq!(bias, [0.0, 0.0, closed, closed]);
    }

    #[test]
    fn buffers_are_kept_by_shape() {
        let kept = BufferPool::new();
        let made = RefCell::new(0);
        let take = |capacity| {
            let new = || {
                *made.borrow_mut() += 1;
                *made.borrow()
            };
            kept.with(BufferShape { capacity, source: 0 }, new, |made: &i32| *made)
        };
        assert_eq!([256, 512, 256, 512].map(take), [1, 2, 1, 2]);
        assert_eq!([4096, 4096].map(take), [3, 4], "too large to be kept");
        assert_eq!([1, 2, 3, 512].map(take), [5, 6, 7, 2]);
        assert_eq!(take(256), 8, "the one that was not used for longest made room");
    }
}
