//! Defines the interface of text generation: the parameters, the output, and the trait of models that
//! generate.

use std::ops::ControlFlow;

use concord_policy::Region;

use crate::ModelError;
use crate::image::preprocess::Pixels;

/// The parameters of a text that a model generates about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRequest {
    /// The prompt: a question, or a task token such as `<CAPTION>` where the model has those.
    pub prompt: String,
    /// The most tokens that are generated.
    pub max_new_tokens: usize,
}

/// The text that a model generated, with its token counts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// The text, without special tokens.
    pub text: String,
    /// The regions of the image that the text refers to.
    pub regions: Vec<Region>,
    /// The number of prompt tokens, including those of the image.
    pub prompt_tokens: usize,
    /// The number of generated tokens.
    pub new_tokens: usize,
    /// True if the text ended by itself, not at `max_new_tokens` or because `on_text` returned `Break`.
    pub finished: bool,
}

/// A model that generates text.
pub trait Generator {
    /// Returns whether the model takes questions in words, rather than only tasks of its own.
    fn takes_questions(&self) -> bool {
        true
    }

    /// Returns the number of beams; with one, decoding is greedy.
    fn beams(&self) -> usize {
        1
    }

    /// Generates text about one image. `on_text` receives each piece of text as soon as it is final, and
    /// stops the generation by returning `Break`; with several beams, it receives the whole text at the end.
    ///
    /// # Errors
    /// Fails when the model does not support the prompt, or libtorch fails.
    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError>;
}
