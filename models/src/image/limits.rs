//! The limits of decoding one image, and their checks before and during the work.

use crate::image::error::DecodeError;

/// The pixels of a decoded image take this many bytes each.
pub(crate) const BYTES_PER_PIXEL: u64 = 3;
/// The bytes of pixels between two looks at whether an image is still wanted: some hundred microseconds of
/// work.
const BYTES_BETWEEN_LOOKS: usize = 256 << 10;

/// The limits of decoding one image. Both are checked by its header, before anything is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// The most pixels that it may have.
    pub max_pixels: u64,
    /// The most bytes that decoding it may take beside its pixels, which take three bytes each.
    pub max_scratch_bytes: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            // More than phones take by default.
            max_pixels: 64_000_000,
            // Enough for the coefficients of a progressive JPEG of 22 megapixels whose chroma is halved in both
            // directions, or of 11 megapixels whose chroma is not.
            max_scratch_bytes: 64 << 20,
        }
    }
}

impl ImageLimits {
    /// Returns limits that allow so many pixels, with the default for everything else.
    pub fn with_max_pixels(max_pixels: u64) -> Self {
        Self { max_pixels, ..Self::default() }
    }
}

/// The bounds of one decoding: its limits, and whether its result is still wanted.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) limits: ImageLimits,
    pub(crate) wanted: &'a dyn Fn() -> bool,
}

impl Bounds<'_> {
    /// Refuses a declared size that is over the limit.
    pub(crate) fn check_size(&self, [width, height]: [u32; 2]) -> Result<(), DecodeError> {
        let limit = self.limits.max_pixels;
        if u64::from(width) * u64::from(height) > limit {
            return Err(DecodeError::TooLarge { width, height, limit });
        }
        Ok(())
    }

    /// Refuses work that takes so many bytes beside the pixels, where that is over the limit, and returns how
    /// many bytes are left.
    pub(crate) fn check_scratch(&self, needed: u64) -> Result<u64, DecodeError> {
        let limit = self.limits.max_scratch_bytes;
        limit.checked_sub(needed).ok_or(DecodeError::TooCostly { needed, limit })
    }

    /// Ends the work if nobody wants its result any more.
    pub(crate) fn check_wanted(&self) -> Result<(), DecodeError> {
        if (self.wanted)() { Ok(()) } else { Err(DecodeError::Abandoned) }
    }
}

/// Returns after how many rows a decoder looks again at whether its image is still wanted.
pub(crate) fn rows_between_looks(width: u32) -> usize {
    (BYTES_BETWEEN_LOOKS / (width as usize * BYTES_PER_PIXEL as usize).max(1)).max(1)
}

/// Returns the number of pixels.
pub(crate) fn pixel_count([width, height]: [u32; 2]) -> u64 {
    u64::from(width) * u64::from(height)
}
