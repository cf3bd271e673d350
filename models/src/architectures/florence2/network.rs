//! The networks, which take image and prompt through the tower, the projector and the encoder.

use tch::Tensor;

use super::bart::{Bart, Memory};
use super::davit::Tower;
use super::projector::Projector;
use super::text::TextCodec;
use crate::ModelError;
use crate::generation::static_cache::padded_length;
use crate::runtime::cuda_graphs::CudaGraphCache;

/// The token that the decoder begins with, and that ends a prompt and a text: `</s>`.
pub(super) const END: i64 = 2;
/// The token that a text begins with: `<s>`.
pub(super) const BEGIN: i64 = 0;
/// The token that pads the shorter texts of a batch.
pub(super) const PAD: i64 = 1;

/// The name of the encoder's graphs among those of the model.
const GRAPHS: &str = "sources";
/// The most sources that run through a CUDA graph. More keep a GPU busy for longer than the encoder takes to
/// launch, and padding them would cost more than it saves: large's 12 layers are about 150 launches, and
/// 190 GFLOP for each source.
const GRAPHED_SOURCES_MAX: i64 = 4;

/// The networks and the tokenizer: the contents of a snapshot, independent of how they are used.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) tower: Tower,
    pub(super) projector: Projector,
    pub(super) bart: Bart,
    pub(super) codec: TextCodec,
    /// The number of tokens that an image becomes.
    pub(super) image_tokens: i64,
    /// The number of positions that encoder and decoder each have.
    pub(super) positions: i64,
    /// True if sources are padded to a few lengths: CUDA graphs need few shapes, but on a CPU padding is
    /// wasted work.
    pub(super) pads_sources: bool,
}

/// The encoder's output for images and their prompts.
#[derive(Debug)]
pub(super) struct Source {
    /// The encoder's last state, [rows, positions, width].
    pub(super) state: Tensor,
    /// The bias of the attention logits where the rows are padded, [1, 1, 1, positions].
    pub(super) bias: Option<Tensor>,
}

impl Network {
    /// Returns the ids of a question with its `<s>` and `</s>`, without those of the image.
    ///
    /// # Errors
    /// Fails when they do not fit into the encoder's positions beside the image.
    pub(super) fn prompt(&self, question: &str) -> Result<Vec<i64>, ModelError> {
        let ids = self.codec.encode(&format!("<s>{question}</s>"))?;
        let (count, room) = (ids.len(), self.positions - self.image_tokens);
        if i64::try_from(count).is_ok_and(|count| count <= room) {
            return Ok(ids);
        }
        Err(ModelError::Unsupported(format!(
            "the prompt has {count} tokens: {room} have room beside the image"
        )))
    }

    /// Returns the ids of a text as the decoder sees it before it continues: start token, `<s>`, the text's
    /// tokens.
    ///
    /// # Errors
    /// Fails when they are more than the decoder's positions.
    pub(super) fn decoder_prefix(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let mut ids = vec![END, BEGIN];
        ids.extend(self.codec.encode(text)?);
        if i64::try_from(ids.len()).is_ok_and(|count| count <= self.positions) {
            return Ok(ids);
        }
        let message = format!("{text:?} has more tokens than the decoder's {} positions", self.positions);
        Err(ModelError::Unsupported(message))
    }

    /// Returns the image tokens [batch, image tokens, width] for pixels [batch, 3, height, width].
    pub(super) fn image_features(&self, pixels: &Tensor) -> Tensor {
        self.projector.forward(&self.tower.forward(&pixels.to_kind(self.bart.kind())))
    }

    /// Returns the encoder's states, each [rows, image tokens + count, width], for image features
    /// [rows, image tokens, width] and prompt ids [rows, count] or [1, count].
    pub(super) fn encoder_states(&self, features: &Tensor, prompts: &Tensor) -> Vec<Tensor> {
        self.bart.encode(&self.embed(features, prompts), None)
    }

    fn embed(&self, features: &Tensor, prompts: &Tensor) -> Tensor {
        let prompts = self.bart.embed(prompts).expand([features.size()[0], -1, -1], false);
        Tensor::cat(&[features, &prompts], 1)
    }

    /// Returns the encoder's last state for the same arguments, padded where sources are.
    pub(super) fn source(&self, features: &Tensor, prompts: &Tensor) -> Source {
        let (embedded, bias) = self.padded(features, prompts);
        Source { state: self.encoded(&embedded, bias.as_ref()), bias }
    }

    /// Returns the encoder's input for these arguments, and its bias where sources are padded.
    fn padded(&self, features: &Tensor, prompts: &Tensor) -> (Tensor, Option<Tensor>) {
        let embedded = self.embed(features, prompts);
        let length = embedded.size()[1];
        let padded = if self.pads_sources { padded_length(length).min(self.positions) } else { length };
        let bias = self.pads_sources.then(|| {
            let options = (self.bart.kind(), self.bart.device());
            let padding = Tensor::full([1, 1, 1, padded - length], f64::NEG_INFINITY, options);
            Tensor::cat(&[Tensor::zeros([1, 1, 1, length], options), padding], -1)
        });
        (embedded.constant_pad_nd([0, 0, 0, padded - length]), bias)
    }

    fn encoded(&self, embedded: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let mut states = self.bart.encode(embedded, bias);
        states.pop().unwrap_or_else(|| embedded.shallow_clone())
    }

    /// Returns the memory that the decoder attends to, for the arguments of [`Network::encoder_states`],
    /// through a CUDA graph where graphs are on and the rows are few.
    pub(super) fn memory(
        &self,
        graphs: &CudaGraphCache,
        features: &Tensor,
        prompts: &Tensor,
    ) -> Result<Memory, ModelError> {
        let (embedded, bias) = self.padded(features, prompts);
        if embedded.size()[0] > GRAPHED_SOURCES_MAX {
            let state = self.encoded(&embedded, bias.as_ref());
            return Ok(self.bart.memory(&state, bias.as_ref()));
        }
        let shared: Vec<&Tensor> = bias.iter().collect();
        let encode = |inputs: &[Tensor]| vec![self.encoded(&inputs[0], inputs.get(1))];
        let outputs = graphs.run_as(GRAPHS, &[&embedded], &shared, encode)?;
        let state = outputs.first().ok_or(ModelError::NotPrepared)?;
        Ok(self.bart.memory(state, bias.as_ref()))
    }

    /// Returns rows of ids of one length, [rows, length], on the device of the networks.
    pub(super) fn ids(&self, rows: &[&[i64]]) -> Result<Tensor, ModelError> {
        let count = i64::try_from(rows.len()).unwrap_or(0);
        Ok(Tensor::f_from_slice(&rows.concat())?.f_view([count, -1])?.f_to_device(self.bart.device())?)
    }
}
