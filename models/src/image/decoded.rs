//! A picture between its bytes and a model: decoded whole, or by its JPEG's own transform to some eighths of that.

use ::image::RgbImage;

/// How a JPEG may be decoded, as the configuration calls it: whole, or no larger than a model needs.
pub const DECODES: [&str; 2] = ["exact", "fast"];

/// A decoded picture.
#[derive(Debug, Clone)]
pub struct DecodedImage {
    /// Upright, 8-bit RGB; smaller than the picture itself where it was decoded at less than [`Scale::WHOLE`].
    pub pixels: RgbImage,
    /// Upright width and height of the picture itself, in pixels: what boxes and points speak of.
    pub size: [u32; 2],
}

impl From<RgbImage> for DecodedImage {
    fn from(pixels: RgbImage) -> Self {
        let size = [pixels.width(), pixels.height()];
        Self { pixels, size }
    }
}

/// How much of each side a JPEG is decoded to, in eighths, rounded up to whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scale(u8);

/// Five to seven eighths are left out: libjpeg-turbo has no vector instructions for them, and of twelve megapixels
/// they took 101, 90 and 114 ms where the whole took 77 in the same run.
const MIN_GAIN: [u8; 4] = [1, 2, 3, 4];

impl Scale {
    /// As it is.
    pub const WHOLE: Self = Self(8);
    /// How many scales there could be, each with an [`index`](Self::index).
    pub const COUNT: usize = 8;

    /// The smallest scale at which a picture of this width and height still has the wanted ones; the whole where none
    /// is cheaper than that.
    pub fn covering(size: [u32; 2], wanted: [u32; 2]) -> Self {
        let covers = |&eighths: &u8| {
            size.iter().zip(wanted).all(|(&side, wanted)| {
                (u64::from(side) * u64::from(eighths)).div_ceil(8) >= u64::from(wanted)
            })
        };
        MIN_GAIN.into_iter().find(covers).map_or(Self::WHOLE, Self)
    }

    /// From 1 to 4, or 8.
    pub fn eighths(self) -> u8 {
        self.0
    }

    /// Among all scales, from 0.
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
