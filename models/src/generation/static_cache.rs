//! Holds keys and values in buffers with fixed addresses, for steps that a CUDA graph replays.

use tch::{Device, Kind, Tensor};

use crate::nn::kv_cache::KvCache;

/// The smallest capacity. Each further one is twice as large: this makes few shapes, hence few graphs, and
/// the unused positions that a step reads cost little compared to the weights (Molmo2-8B: at most 150 MB of
/// 2048 positions, and 16 GB of weights).
const CAPACITY_MIN: i64 = 256;

/// The length up to which prompts are padded to a multiple of the first of the next constants; longer ones
/// are padded to a multiple of the second.
const SHORT_PROMPTS_MAX: i64 = 1024;
const SHORT_PROMPT_STEP: i64 = 32;
const LONG_PROMPT_STEP: i64 = 256;

/// Returns the capacity of a cache that must hold the given number of positions.
pub(crate) fn capacity_for(positions: i64) -> i64 {
    let mut capacity = CAPACITY_MIN;
    while capacity < positions {
        capacity *= 2;
    }
    capacity
}

/// Returns the length to which a prompt of the given number of positions is padded.
pub(crate) fn padded_length(positions: i64) -> i64 {
    let step = if positions <= SHORT_PROMPTS_MAX { SHORT_PROMPT_STEP } else { LONG_PROMPT_STEP };
    (positions + step - 1) / step * step
}

/// The sizes of a decoder that its buffers depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecoderSizes {
    pub(crate) layers: usize,
    /// The number of heads of keys and values.
    pub(crate) heads: i64,
    pub(crate) head_width: i64,
    pub(crate) vocabulary: i64,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

/// The keys and values of all layers, allocated once and only written to.
#[derive(Debug)]
pub(crate) struct StaticCache {
    all: Tensor,
    /// Views of the storage: the keys and values [rows, heads, capacity, head width] of each layer.
    layers: Vec<(Tensor, Tensor)>,
}

impl StaticCache {
    pub(crate) fn new(sizes: &DecoderSizes, rows: i64, capacity: i64) -> Self {
        let layers = sizes.layers as i64;
        let shape = [layers, 2, rows, sizes.heads, capacity, sizes.head_width];
        let all = Tensor::zeros(shape, (sizes.kind, sizes.device));
        let views = |layer| (all.select(0, layer).select(0, 0), all.select(0, layer).select(0, 1));
        Self { layers: (0..layers).map(views).collect(), all }
    }

    /// Returns the keys and values [rows, heads, capacity, head width] of a layer.
    pub(crate) fn layer(&self, index: usize) -> (&Tensor, &Tensor) {
        let (keys, values) = &self.layers[index];
        (keys, values)
    }

    /// Sets everything to zero. Masked positions still take part in products, in which a NaN left by an
    /// earlier text would spread.
    pub(crate) fn clear(&self) {
        let _zeros = self.all.shallow_clone().zero_();
    }

    /// Returns the cache as a store for a prompt, which begins at position 0.
    pub(crate) fn prompt(&self) -> KeepPrompt<'_> {
        KeepPrompt(self)
    }

    /// Returns the cache as a store for one position, given by a tensor \[1\].
    pub(crate) fn at<'a>(&'a self, position: &'a Tensor) -> KeepStep<'a> {
        KeepStep { cache: self, position }
    }
}

/// A store that writes a prompt's keys and values to the beginning; the prompt attends to itself alone.
#[derive(Debug)]
pub(crate) struct KeepPrompt<'a>(&'a StaticCache);

impl KvCache for KeepPrompt<'_> {
    fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        let (all_keys, all_values) = &self.0.layers[layer];
        let count = keys.size()[2];
        all_keys.narrow(2, 0, count).copy_(&keys);
        all_values.narrow(2, 0, count).copy_(&values);
        (keys, values)
    }
}

/// A store that writes one position and returns the whole capacity, of which the caller masks the positions
/// that are not written yet.
#[derive(Debug)]
pub(crate) struct KeepStep<'a> {
    cache: &'a StaticCache,
    position: &'a Tensor,
}

impl KvCache for KeepStep<'_> {
    fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
        let (all_keys, all_values) = &self.cache.layers[layer];
        let (mut all_keys, mut all_values) = (all_keys.shallow_clone(), all_values.shallow_clone());
        let _written = all_keys.index_copy_(2, self.position, &keys);
        let _written = all_values.index_copy_(2, self.position, &values);
        (all_keys, all_values)
    }
}

#[cfg(test)]
mod tests {
    use super::{capacity_for, padded_length};

    #[test]
    fn shapes_are_few() {
        for (positions, capacity) in [(0, 256), (1, 256), (256, 256), (257, 512), (1025, 2048)] {
            assert_eq!(capacity_for(positions), capacity, "{positions}");
        }
        for (positions, padded) in
            [(1, 32), (32, 32), (33, 64), (800, 800), (1000, 1024), (1024, 1024), (1025, 1280)]
        {
            assert_eq!(padded_length(positions), padded, "{positions}");
        }
    }
}
