//! A decoder that generates step by step, whatever its architecture.

use tch::Tensor;

/// A decoder in the middle of one or several texts, with all that it keeps of what came before.
pub(crate) trait Decoder {
    /// The logits [rows, vocabulary], fp32, of what follows the new tokens [rows, count].
    fn step(&mut self, tokens: &Tensor) -> Tensor;

    /// Keeps these of its rows, in this order.
    fn select(&mut self, rows: &Tensor);
}
