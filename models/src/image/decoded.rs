//! A decoded image, at full size or at a reduced scale that the JPEG's own transform gives.

use ::image::RgbImage;

/// The decoding modes of JPEGs by their names in the configuration: at full size, or no larger than a model
/// needs.
pub const DECODES: [&str; 2] = ["exact", "fast"];

/// A decoded image.
#[derive(Debug, Clone)]
pub struct DecodedImage {
    /// The pixels, upright, 8-bit RGB; smaller than the full-size image where it was decoded below
    /// [`Scale::WHOLE`].
    pub pixels: RgbImage,
    /// The upright width and height of the full-size image, in pixels: boxes and points refer to these.
    pub size: [u32; 2],
}

impl From<RgbImage> for DecodedImage {
    fn from(pixels: RgbImage) -> Self {
        let size = [pixels.width(), pixels.height()];
        Self { pixels, size }
    }
}

/// The scale at which a JPEG is decoded, in eighths of each side, rounded up to whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scale(u8);

/// The scales that are faster than full size. Five to seven eighths are left out: libjpeg-turbo has no vector
/// instructions for them, and for twelve megapixels they took 101, 90 and 114 ms, where full size took 77 ms
/// in the same run.
const MIN_GAIN: [u8; 4] = [1, 2, 3, 4];

impl Scale {
    /// The full size.
    pub const WHOLE: Self = Self(8);
    /// The number of possible scales, each of which has an [`index`](Self::index).
    pub const COUNT: usize = 8;

    /// Returns the smallest scale at which an image of `size` (width, height) still covers the `wanted` size,
    /// or full size where no smaller scale is faster.
    pub fn covering(size: [u32; 2], wanted: [u32; 2]) -> Self {
        let covers = |&eighths: &u8| {
            size.iter().zip(wanted).all(|(&side, wanted)| {
                (u64::from(side) * u64::from(eighths)).div_ceil(8) >= u64::from(wanted)
            })
        };
        MIN_GAIN.into_iter().find(covers).map_or(Self::WHOLE, Self)
    }

    /// Returns the scale in eighths: 1 to 4, or 8.
    pub fn eighths(self) -> u8 {
        self.0
    }

    /// Returns the position among all scales, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_the_smallest_that_leaves_enough_of_both_sides() {
        for (size, wanted, eighths) in [
            ([4000, 3000], [384, 384], 2),
            ([4000, 3000], [375, 375], 1),
            ([3000, 4000], [376, 376], 2),
            ([4000, 3000], [64, 64], 1),
            ([10_000, 383], [384, 384], 8),
            ([384, 384], [384, 384], 8),
            ([768, 768], [384, 384], 4),
            ([767, 767], [384, 384], 4),
            ([766, 766], [384, 384], 8),
            ([100, 100], [384, 384], 8),
            ([9, 9], [2, 2], 1),
            ([u32::MAX, u32::MAX], [u32::MAX, 1], 8),
        ] {
            assert_eq!(Scale::covering(size, wanted).eighths(), eighths, "{size:?} for {wanted:?}");
        }
    }
}
