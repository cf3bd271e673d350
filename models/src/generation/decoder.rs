//! Defines the interface of a decoder that generates step by step, independent of its architecture.

use tch::Tensor;

/// A decoder in the middle of one or several texts, with its cache of the tokens so far.
pub(crate) trait Decoder {
    /// Returns the logits [rows, vocabulary], fp32, that follow the new tokens [rows, count].
    fn step(&mut self, tokens: &Tensor) -> Tensor;

    /// Keeps the given rows, in this order.
    fn select(&mut self, rows: &Tensor);
}
