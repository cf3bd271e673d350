//! The keys and values that the attention of autoregressive decoders keeps.

use tch::Tensor;

/// A store to which the layers of a decoder append their new keys and values.
pub(crate) trait KvCache {
    /// Appends the keys and values of new positions to a layer, [rows, heads, positions, width] each; returns
    /// all keys and values that these positions attend to.
    fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor);
}

/// A cache that grows with its texts: it keeps the keys and values of all positions so far, [rows, heads,
/// positions, width] in each layer.
#[derive(Debug)]
pub(crate) struct GrowingKvCache {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl GrowingKvCache {
    /// Creates an empty cache for this many layers.
    pub(crate) fn new(layers: usize) -> Self {
        Self { layers: (0..layers).map(|_| None).collect() }
    }

    /// Returns the number of positions that the cache holds.
    pub(crate) fn positions(&self) -> i64 {
        self.layers.first().and_then(Option::as_ref).map_or(0, |(keys, _)| keys.size()[2])
    }

    /// Drops all but the first `positions` positions.
    pub(crate) fn truncate(&mut self, positions: i64) {
        for (keys, values) in self.layers.iter_mut().flatten() {
            *keys = keys.narrow(2, 0, positions);
            *values = values.narrow(2, 0, positions);
        }
    }

    /// Keeps these rows, in this order, as beam search does when it selects beams.
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
