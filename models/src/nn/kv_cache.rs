//! Keys and values that the attention of autoregressive decoders keeps.

use tch::Tensor;

/// Where the layers of a decoder put their new keys and values.
pub(crate) trait KvCache {
    /// Adds the keys and values of new positions to a layer; gives all that these positions are to look at.
    fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor);
}

/// A cache that grows with its texts: the keys and values of all positions so far, [rows, heads, positions, width] in
/// each layer.
#[derive(Debug)]
pub(crate) struct GrowingKvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl GrowingKvCache {
    pub(crate) fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| None).collect() }
    }

    /// How many positions it holds.
    pub(crate) fn positions(&self) -> i64 {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.size()[2])
    }

    /// Keeps the first positions only.
    pub(crate) fn truncate(&mut self, positions: i64) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.narrow(2, 0, positions);
            *values = values.narrow(2, 0, positions);
        }
    }

    /// Keeps these rows, in this order: what beam search does to its beams.
    pub(crate) fn select(&mut self, rows: &Tensor) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
    }
}

impl KvCache for GrowingKvCache {
    fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        let (keys, values) = match &self.layers[layer] {
            Some((old_keys, old_values)) => {
                (Tensor::cat(&[old_keys, &keys], 2), Tensor::cat(&[old_values, &values], 2))
            }
            None => (keys, values),
        };
        self.layers[layer] = Some((keys.shallow_clone(), values.shallow_clone()));
        (keys, values)
    }
}
