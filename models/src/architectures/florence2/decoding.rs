//! The state of texts that are being generated: several at once with a cache that grows, or one in fixed
//! buffers.

use tch::{Kind, Tensor};

use super::bart::{Bart, Memory};
use crate::ModelError;
use crate::generation::decoder::Decoder;
use crate::generation::greedy::{DecodeBuffers, DecodeStep};
use crate::nn::kv_cache::GrowingKvCache;

/// A decoder in the middle of its texts.
#[derive(Debug)]
pub(super) struct BartDecoder<'a> {
    bart: &'a Bart,
    memory: Memory,
    cache: GrowingKvCache,
}

impl<'a> BartDecoder<'a> {
    pub(super) fn new(bart: &'a Bart, memory: Memory) -> Self {
        Self { bart, memory, cache: bart.cache() }
    }
}

impl Decoder for BartDecoder<'_> {
    fn step(&mut self, tokens: &Tensor) -> Tensor {
        let states = self.bart.decode(tokens, &self.memory, &mut self.cache);
        let last = states[states.len() - 1].select(1, -1);
        self.bart.logits(&last).to_kind(Kind::Float)
    }

    fn select(&mut self, rows: &Tensor) {
        self.cache.select(rows);
        self.memory.select(rows);
    }
}

impl Memory {
    /// Keeps the sources of these rows. A single source is that of every row.
    fn select(&mut self, rows: &Tensor) {
        for (keys, values) in &mut self.layers {
            if keys.size()[0] > 1 {
                *keys = keys.index_select(0, rows);
                *values = values.index_select(0, rows);
            }
        }
    }
}

/// The buffers of a text that is generated greedily.
#[derive(Debug)]
pub(super) struct GreedyText {
    pub(super) buffers: DecodeBuffers,
    /// The keys and values of one source.
    memory: Memory,
}

impl GreedyText {
    /// Allocates the buffers for sources of the same shape as `like`.
    pub(super) fn new(bart: &Bart, capacity: i64, like: &Memory) -> Self {
        let layers = like.layers.iter().map(|(keys, values)| (zeros_like(keys), zeros_like(values)));
        let memory = Memory { layers: layers.collect(), bias: like.bias.as_ref().map(zeros_like) };
        Self { buffers: DecodeBuffers::new(&bart.sizes(), 1, capacity), memory }
    }

    /// Begins a text about another source, with this token.
    pub(super) fn begin(&self, source: &Memory, token: i64) {
        for ((keys, values), (new_keys, new_values)) in self.memory.layers.iter().zip(&source.layers) {
            keys.shallow_clone().copy_(new_keys);
            values.shallow_clone().copy_(new_values);
        }
        if let (Some(bias), Some(new)) = (&self.memory.bias, &source.bias) {
            bias.shallow_clone().copy_(new);
        }
        self.buffers.cache.clear();
        self.buffers.begin_with(token);
    }
}

/// Returns contiguous zeros, which nothing else views.
fn zeros_like(tensor: &Tensor) -> Tensor {
    Tensor::zeros(tensor.size(), (tensor.kind(), tensor.device()))
}

/// A step that generates the next token of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) bart: &'a Bart,
    pub(super) writing: &'a GreedyText,
}

impl DecodeStep for Step<'_> {
    fn buffers(&self) -> &DecodeBuffers {
        &self.writing.buffers
    }

    fn step(&self) -> Result<(), ModelError> {
        let GreedyText { buffers, memory } = self.writing;
        let (position, bias) = (buffers.position(), buffers.bias());
        let mut cache = buffers.cache.at(position);
        let state = self.bart.decode_at(position, &buffers.token(), memory, &bias, &mut cache);
        buffers.advance(&self.bart.logits(&state));
        Ok(())
    }
}
