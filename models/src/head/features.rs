//! Defines the features of a backbone that heads are trained on.

use crate::ModelError;
use crate::image::preprocess::Pixels;

/// The part of a backbone's output that is kept for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// The CLS token and the mean of the patch tokens: two rows, enough for linear heads.
    Pooled,
    /// The CLS token and every patch token, for heads that attend to them.
    Tokens,
}

impl FeatureKind {
    /// Returns the name in digests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::Tokens => "tokens",
        }
    }
}

/// A model on whose output heads can be trained.
pub trait FeatureSource: std::fmt::Debug {
    /// Returns the rows of an image's features, the CLS token's first, and the width of each.
    fn feature_shape(&self, kind: FeatureKind) -> [usize; 2];

    /// Returns the features of each image, row after row, in fp32.
    ///
    /// # Errors
    /// Fails when libtorch does.
    fn features(&self, images: &[&Pixels], kind: FeatureKind) -> Result<Vec<Vec<f32>>, ModelError>;
}
