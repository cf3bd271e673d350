//! What the autoregressive decoders share: keys and values that are kept, and the choice of the next token.

use std::ops::ControlFlow;

use tch::{Kind, Tensor};

/// The keys and values of all positions so far, [rows, heads, positions, width] in each layer.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvCache {
    pub(crate) fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| None).collect() }
    }

    /// How many positions it holds.
    pub(crate) fn positions(&self) -> i64 {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.size()[2])
    }

    /// Adds the keys and values of new positions to a layer, and gives all that it has then.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        let (keys, values) = match &self.layers[layer] {
            Some((old_keys, old_values)) => {
                (Tensor::cat(&[old_keys, &keys], 2), Tensor::cat(&[old_values, &values], 2))
            }
            None => (keys, values),
        };
        self.layers[layer] = Some((keys.shallow_clone(), values.shallow_clone()));
        (keys, values)
    }

    /// Keeps these rows, in this order: what beam search does to its beams.
    pub(crate) fn select(&mut self, rows: &Tensor) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
    }
}

/// A decoder in the middle of a text, with all that it keeps of what came before.
pub(crate) trait Decoder {
    /// The logits [rows, vocabulary], fp32, of what follows the new tokens [rows, count].
    fn step(&mut self, tokens: &Tensor) -> Tensor;

    /// Keeps these of its rows, in this order.
    fn select(&mut self, rows: &Tensor);
}

/// Writes the most probable token until one of `ends`, which is not kept, `max_new_tokens` or a `Break`. One row;
/// `logits` are those of what follows the prompt. Whether it ended by itself comes with the tokens.
pub(crate) fn greedy(
    decoder: &mut dyn Decoder,
    mut logits: Tensor,
    ends: &[i64],
    max_new_tokens: usize,
    mut on_token: impl FnMut(&[i64]) -> ControlFlow<()>,
) -> (Vec<i64>, bool) {
    let mut tokens = Vec::new();
    while tokens.len() < max_new_tokens {
        let next = logits.argmax(-1, false);
        let token = next.int64_value(&[0]);
        if ends.contains(&token) {
            return (tokens, true);
        }
        tokens.push(token);
        if on_token(&tokens).is_break() || tokens.len() == max_new_tokens {
            break;
        }
        logits = decoder.step(&next.view([1, 1]).to_kind(Kind::Int64));
    }
    (tokens, false)
}
