//! Parts of a model that run by themselves, for measuring them.

use tch::Tensor;

use crate::ModelError;

/// What a whole image tower does, as a part is called.
pub(crate) const POOLED: &str = "pixels → pooled output";
/// What the image side of a text model does, as a part is called.
pub(crate) const IMAGE_FEATURES: &str = "pixels → image features";

/// A part of a model, with an input that is on the model's device already.
pub struct BenchTarget<'model> {
    /// What it does.
    pub work: String,
    /// How many tokens it reads, where it reads a prompt.
    pub prompt_tokens: Option<usize>,
    /// How many tokens it writes, where it does.
    pub new_tokens: Option<usize>,
    pub(crate) run: Box<dyn Fn() -> Result<Tensor, ModelError> + 'model>,
}

impl<'model> BenchTarget<'model> {
    /// A part that reads and writes no tokens.
    pub(crate) fn new(
        work: impl Into<String>,
        run: impl Fn() -> Result<Tensor, ModelError> + 'model,
    ) -> Self {
        Self { work: work.into(), prompt_tokens: None, new_tokens: None, run: Box::new(run) }
    }

    /// Its output, on the model's device, where the work may still be under way.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn run(&self) -> Result<BenchOutput, ModelError> {
        (self.run)().map(BenchOutput)
    }
}

impl std::fmt::Debug for BenchTarget<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Part").field("work", &self.work).finish_non_exhaustive()
    }
}

/// What a part gave.
#[derive(Debug)]
pub struct BenchOutput(Tensor);

impl BenchOutput {
    /// Whether every value is a number; waits for the work.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn is_finite(&self) -> Result<bool, ModelError> {
        Ok(self.0.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1)
    }
}
