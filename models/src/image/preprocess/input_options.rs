//! Options for the input of a model that comes without a preprocessor of its own.

/// The input that a model expects: red, green and blue in the range 0–1, resized with antialiasing, less
/// `mean`, divided by `std`, as a tensor of [batch, 3, height, width].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct InputOptions {
    /// The height in pixels.
    pub(crate) height: i64,
    /// The width in pixels.
    pub(crate) width: i64,
    /// The resize filter, one of [`FILTERS`](super::FILTERS).
    pub(crate) filter: String,
    /// The mean of red, green and blue.
    pub(crate) mean: [f64; 3],
    /// The standard deviation of red, green and blue.
    pub(crate) std: [f64; 3],
}
