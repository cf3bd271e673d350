//! Parts of a model that run by themselves, for benchmarks.

use tch::Tensor;

use crate::ModelError;

/// The description of a whole image tower.
pub(crate) const POOLED: &str = "pixels → pooled output";
/// The description of the image side of a text model.
pub(crate) const IMAGE_FEATURES: &str = "pixels → image features";

/// A part of a model, with an input that is already on the model's device.
pub struct BenchTarget<'model> {
    /// The description of what the part computes.
    pub work: String,
    /// The number of tokens that the part reads, if it reads a prompt.
    pub prompt_tokens: Option<usize>,
    /// The number of tokens that the part generates, if it generates any.
    pub new_tokens: Option<usize>,
    pub(crate) run: Box<dyn Fn() -> Result<Tensor, ModelError> + 'model>,
}

impl<'model> BenchTarget<'model> {
    /// Creates a part that reads and generates no tokens.
    pub(crate) fn new(
        work: impl Into<String>,
        run: impl Fn() -> Result<Tensor, ModelError> + 'model,
    ) -> Self {
        Self { work: work.into(), prompt_tokens: None, new_tokens: None, run: Box::new(run) }
    }

    /// Runs the part. The output is on the model's device, where the work may still be in flight.
    ///
    /// # Errors
    /// Returns an error if libtorch fails.
    pub fn run(&self) -> Result<BenchOutput, ModelError> {
        (self.run)().map(BenchOutput)
    }
}

impl std::fmt::Debug for BenchTarget<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Part").field("work", &self.work).finish_non_exhaustive()
    }
}

/// The output of a part.
#[derive(Debug)]
pub struct BenchOutput(Tensor);

impl BenchOutput {
    /// Returns whether every value is finite; waits for the work.
    ///
    /// # Errors
    /// Returns an error if libtorch fails.
    pub fn is_finite(&self) -> Result<bool, ModelError> {
        Ok(self.0.f_isfinite()?.f_all()?.f_int64_value(&[])? == 1)
    }
}
