//! The limits of preprocessing one image.

use crate::ModelError;
use crate::image::limits::ImageLimits;

/// The memory that preprocessing one image may take, and whether anybody still waits for it.
#[derive(Clone, Copy)]
pub struct PreprocessLimits<'caller> {
    /// The most bytes beside the image's own pixels and a few tensors of the result's size, which is the
    /// model's and not the image's.
    pub max_scratch_bytes: u64,
    /// Returns whether the work is still wanted: called between its steps, which take some milliseconds each.
    pub is_wanted: &'caller dyn Fn() -> bool,
}

impl PreprocessLimits<'_> {
    /// # Errors
    /// Returns [`ModelError::Abandoned`] where the work is not wanted any more.
    pub(super) fn check_wanted(&self) -> Result<(), ModelError> {
        if (self.is_wanted)() { Ok(()) } else { Err(ModelError::Abandoned) }
    }
}

impl Default for PreprocessLimits<'_> {
    /// Returns the default limit of memory, for work that is always wanted. It is enough for photographs of 24
    /// megapixels to give the very values of the reference at sides up to 1024.
    fn default() -> Self {
        Self { max_scratch_bytes: ImageLimits::default().max_scratch_bytes, is_wanted: &|| true }
    }
}
