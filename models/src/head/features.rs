//! What a backbone says of images before any head: what heads are trained on.

use crate::ModelError;
use crate::image::preprocess::Pixels;

/// How much of a backbone's output is kept of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FeatureKind {
    /// The CLS token and the mean of the patch tokens: two rows, enough for linear heads.
    Pooled,
    /// The CLS token and every patch token, for heads that attend to them.
    Tokens,
}

impl FeatureKind {
    /// Its name in digests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pooled => "pooled",
            Self::Tokens => "tokens",
        }
    }
}

/// A model whose output heads can be trained on.
pub trait FeatureSource: std::fmt::Debug {
    /// How many rows an image's features have, the CLS token's first, and how wide each is.
    fn feature_shape(&self, kind: FeatureKind) -> [usize; 2];

    /// The features of each image, row after row, in fp32.
    ///
    /// # Errors
    /// When libtorch refuses.
    fn features(&self, images: &[&Pixels], kind: FeatureKind) -> Result<Vec<Vec<f32>>, ModelError>;
}
