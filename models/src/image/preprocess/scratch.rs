//! Decides in which order an image is resized, by the memory that each order takes; pure.
//!
//! Between libtorch's two passes lie height × target width values, and each pass has a table of weights that
//! grows with the side it resizes: for an image of 1 × 1,000,000 pixels and a target of 224 pixels that would
//! be 2.7 GB. Shrinking the longer side first leaves lines of the other side's length, of which as few as one
//! are in memory. The other side has at most √pixels pixels, 8,000 of 64 megapixels, and a line of them takes
//! less than a megabyte: so every image fits, whatever its proportions and the target.

use super::Filter;
use super::resize::{Resize, Samples};

/// The size of a strip, which should stay in the processor's cache: for twelve megapixels, strips of 1 to 4
/// MB took the same time, and smaller ones longer, because each has its table of weights computed.
const STRIP_BYTES: u64 = 2 << 20;
/// The part of the memory that a strip may take where that is little.
const STRIP_SHARE: u64 = 8;

/// The order in which an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Strips of rows to the target's width, then all columns, for so many channels at a time: the values
    /// are those of one call of libtorch.
    Strips { rows: u64, channels: usize },
    /// The longer side line by line, then the other one: the values are those of one call up to rounding,
    /// and to what overshoots a byte's range, which is cut off after each pass.
    LongSideFirst,
}

/// The numbers of lines that are processed at a time where the longer side is shrunk first.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineCounts {
    /// Lines of the image.
    pub(super) chunk: u64,
    /// Shrunk lines, which are then resized to the target's other side.
    pub(super) block: u64,
}

/// Bytes for each line of the image and pixel of it: gathered, as a tensor, and in fp32.
const CHUNK_PIXEL_BYTES: u64 = 3 + 3 + 12;
/// Bytes for each line of the image beside its pixels: its weight in fp32, twice.
const CHUNK_LINE_BYTES: u64 = 4 + 4;
/// Bytes for each shrunk line and pixel of it: in fp32, alone and in the block, and in bytes.
const BLOCK_PIXEL_BYTES: u64 = 12 + 12 + 3;
/// Bytes for each pixel of the line that is being added up, with what is added.
const SUM_PIXEL_BYTES: u64 = 3 * 12;

impl Resize {
    /// Returns the order for an image of this width and height: the first that takes at most
    /// `max_scratch_bytes`.
    pub(super) fn order(&self, size: [u32; 2], max_scratch_bytes: u64) -> Order {
        let channels: &[usize] = match self.samples {
            Samples::Bytes => &[3],
            Samples::Floats { .. } => &[3, 1],
        };
        channels
            .iter()
            .map(|&channels| self.strips(size, channels, max_scratch_bytes))
            .find(|&order| self.scratch_bytes(size, order, max_scratch_bytes) <= max_scratch_bytes)
            .unwrap_or(Order::LongSideFirst)
    }

    fn strips(&self, [width, height]: [u32; 2], channels: usize, max_scratch_bytes: u64) -> Order {
        let row = u64::from(width) * self.strip_pixel_bytes(channels as u64);
        let rows = strip_bytes(max_scratch_bytes) / row.max(1);
        Order::Strips { rows: rows.min(u64::from(height)).max(1), channels }
    }

    /// Returns the numbers of lines for lines of `across` pixels.
    pub(super) fn line_counts(across: u64, max_scratch_bytes: u64) -> LineCounts {
        let budget = strip_bytes(max_scratch_bytes);
        LineCounts {
            chunk: (budget / (across * CHUNK_PIXEL_BYTES + CHUNK_LINE_BYTES)).max(1),
            block: (budget / (across * BLOCK_PIXEL_BYTES).max(1)).max(1),
        }
    }

    /// Returns the bytes that resizing an image of this width and height takes beside the image and tensors
    /// of the target's size.
    pub(super) fn scratch_bytes(&self, size: [u32; 2], order: Order, max_scratch_bytes: u64) -> u64 {
        let [width, height] = size.map(u64::from);
        let [to_width, to_height] = [self.width, self.height].map(|side| side as u64);
        match order {
            Order::Strips { rows, channels } => {
                let channels = channels as u64;
                let strip = rows * width * self.strip_pixel_bytes(channels);
                let between = (height + rows) * to_width * channels * self.sample_bytes();
                strip + between + self.table_bytes(width, to_width) + self.table_bytes(height, to_height)
            }
            Order::LongSideFirst => {
                let (across, to_across) =
                    if height >= width { (width, to_width) } else { (height, to_height) };
                let LineCounts { chunk, block } = Self::line_counts(across, max_scratch_bytes);
                chunk * (across * CHUNK_PIXEL_BYTES + CHUNK_LINE_BYTES)
                    + block * across * BLOCK_PIXEL_BYTES
                    + across * SUM_PIXEL_BYTES
                    + self.table_bytes(across, to_across)
            }
        }
    }

    /// Returns the bytes of a pixel of a strip: the image's, and those of the converted channels.
    fn strip_pixel_bytes(&self, channels: u64) -> u64 {
        match self.samples {
            Samples::Bytes => 3,
            Samples::Floats { .. } => 3 + channels * 4,
        }
    }

    fn sample_bytes(&self) -> u64 {
        match self.samples {
            Samples::Bytes => 1,
            Samples::Floats { .. } => 4,
        }
    }

    /// Returns the bytes of libtorch's table of weights for one pass, about 8 to 32 for each pixel of a side
    /// that shrinks: `_compute_index_ranges_weights` in PyTorch's `UpSampleKernel.cpp`, which computes the
    /// weights of bytes in fp64.
    fn table_bytes(&self, from: u64, to: u64) -> u64 {
        /// The index, the size and the stride of each value's window, and the place of its weights.
        const WINDOW_BYTES: u64 = 4 * 8;
        let radius = match self.filter {
            Filter::Bilinear => 1,
            Filter::Bicubic => 2,
        };
        let weights = 2 * (radius * from).div_ceil(to.min(from).max(1)) + 1;
        to * (weights * if self.sample_bytes() == 1 { 8 } else { 4 } + WINDOW_BYTES)
    }
}

fn strip_bytes(max_scratch_bytes: u64) -> u64 {
    STRIP_BYTES.min(max_scratch_bytes / STRIP_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::limits::ImageLimits;

    /// Heights and widths of models, from the nano ones to the largest that a configuration may have, and
    /// the lines of patches to which NaFlex resizes thin images.
    const TARGETS: [[i64; 2]; 9] = [
        [64, 64],
        [224, 224],
        [384, 384],
        [768, 768],
        [1024, 1024],
        [8192, 8192],
        [16, 65_536],
        [65_536, 16],
        [1, 1],
    ];
    /// The default of `max_pixels`.
    const PIXELS: u64 = 64_000_000;

    fn resizes() -> impl Iterator<Item = Resize> {
        let each = |[height, width]: [i64; 2]| {
            [Filter::Bilinear, Filter::Bicubic].into_iter().flat_map(move |filter| {
                [Samples::Bytes, Samples::Floats { factor: 1.0 }].map(|samples| Resize {
                    samples,
                    filter,
                    height,
                    width,
                })
            })
        };
        TARGETS.into_iter().flat_map(each)
    }

    /// Returns sizes of up to [`PIXELS`] pixels, of all proportions.
    fn sizes() -> impl Iterator<Item = [u32; 2]> {
        let sides = (0..26).flat_map(|power| [1_u64 << power, (3_u64 << power) / 2 + 1]).chain([PIXELS]);
        let fractions = [1, 2, 5, 100, 10_000, 10_000_000];
        sides.filter(|&side| side <= PIXELS).flat_map(move |side| {
            fractions.into_iter().flat_map(move |fraction| {
                let [side, other] =
                    [side, (PIXELS / side / fraction).max(1)].map(|it| u32::try_from(it).unwrap());
                [[side, other], [other, side]]
            })
        })
    }

    #[test]
    fn no_image_takes_more_than_the_limit() {
        let max_scratch_bytes = ImageLimits::default().max_scratch_bytes;
        for resize in resizes() {
            for size in sizes() {
                let order = resize.order(size, max_scratch_bytes);
                let bytes = resize.scratch_bytes(size, order, max_scratch_bytes);
                assert!(bytes <= max_scratch_bytes, "{resize:?} of {size:?}: {order:?} takes {bytes} bytes");
            }
        }
    }

    #[test]
    fn photographs_have_the_order_of_the_reference_and_thin_images_have_not() {
        let max_scratch_bytes = ImageLimits::default().max_scratch_bytes;
        let to = |side, samples| Resize { samples, filter: Filter::Bicubic, height: side, width: side };
        let floats = Samples::Floats { factor: 1.0 };
        for (resize, size, exact) in [
            (to(224, floats), [4000, 3000], true),
            (to(384, floats), [3000, 4000], true),
            (to(1024, floats), [4000, 6000], true),
            (to(384, floats), [8000, 8000], true),
            (to(384, Samples::Bytes), [8000, 8000], true),
            (to(768, Samples::Bytes), [8000, 8000], true),
            (to(64, floats), [100, 200_000], true),
            (to(224, floats), [200_000, 100], true),
            (to(224, floats), [1, 1_000_000], false),
            (to(64, floats), [1, 4_000_000], false),
            (to(384, Samples::Bytes), [4_000_000, 1], false),
        ] {
            let order = resize.order(size, max_scratch_bytes);
            assert_eq!(order != Order::LongSideFirst, exact, "{resize:?} of {size:?}: {order:?}");
        }
    }
}
