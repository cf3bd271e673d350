//! What text models are asked besides votes, and what they answer.

use std::ops::ControlFlow;

use concord_policy::Region;

use crate::ModelError;
use crate::image::preprocess::Pixels;

/// What a model is to write about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerateRequest {
    /// A question, or a task token such as `<CAPTION>` where the model has those.
    pub prompt: String,
    /// At most so many tokens are written.
    pub max_new_tokens: usize,
}

/// What a model wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// The text, without special tokens.
    pub text: String,
    /// What it says about parts of the image.
    pub regions: Vec<Region>,
    /// How many tokens the prompt had, those of the image included.
    pub prompt_tokens: usize,
    /// How many tokens were written.
    pub new_tokens: usize,
    /// Whether it ended by itself, not at `max_new_tokens` or because it was told to.
    pub finished: bool,
}

/// A model that writes text.
pub trait Generator {
    /// Whether it takes questions in words, or only tasks of its own.
    fn takes_questions(&self) -> bool {
        true
    }

    /// How many texts it follows at once; with one it is greedy.
    fn beams(&self) -> usize {
        1
    }

    /// Writes about one image. `on_text` gets each piece of text as soon as it is certain, and ends the writing with
    /// `Break`; where several texts are followed at once (beams), it gets the whole at the end.
    ///
    /// # Errors
    /// When the prompt is none for this model, or libtorch refuses.
    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError>;
}
