//! Leaves resizing and normalising to the GPU: the image's bytes are staged in page-locked memory and copied
//! on the model's stream, so that no thread waits for the copy.
//!
//! The recipes are those of the CPU, in fp32. Where the CPU computes in bytes, it rounds between the passes
//! along rows and columns, and so does this code: the remaining difference is one level in few pixels, where
//! the CPU's integer weights round otherwise. The same code runs on the CPU in tests.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use ::image::RgbImage;
use tch::{Device, Kind, Tensor};

use super::{Filter, PixelLayout, Pixels, Preprocessor, Recipe};
use crate::libtorch::{LibtorchError, pinned};

/// The most bytes of one image that are staged: 16 megapixels. The GPU briefly needs five times as much, and
/// where resizing in bytes leaves as many values between its passes, which this limits as well, 16 times as
/// much: 768 MiB, measured for 1024 × 16,384 pixels and a side of 1024.
const IMAGE_BYTES_MAX: u64 = 48 << 20;
/// The most bytes of all images that wait or run. There may be as many as all queues hold, and page-locked
/// memory is lost to other uses.
const PINNED_BYTES_MAX: u64 = 1 << 30;
/// The largest factor by which a side may shrink. The kernel keeps its weights in shared memory, and refuses
/// at a factor of about 46.
const SHRINK_MAX: i64 = 16;

/// The bytes of [`PINNED_BYTES_MAX`] that are in use.
static PINNED_BYTES: AtomicU64 = AtomicU64::new(0);
static REFUSED: Once = Once::new();

/// The work that remains to be done with an image's bytes.
#[derive(Debug)]
pub(super) struct Rest {
    preprocessor: Preprocessor,
    _share: Share,
}

/// A reservation of a share of the page-locked memory; released on drop.
#[derive(Debug)]
pub(super) struct Share(u64);

impl Share {
    /// Reserves `bytes`, or returns `None` where that would exceed the limit.
    pub(super) fn take(bytes: u64) -> Option<Self> {
        // libtorch rounds its allocations up in the same way.
        let bytes = bytes.checked_next_power_of_two()?;
        let more = |held: u64| held.checked_add(bytes).filter(|&held| held <= PINNED_BYTES_MAX);
        PINNED_BYTES.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| Self(bytes))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        PINNED_BYTES.fetch_sub(self.0, Ordering::AcqRel);
    }
}

impl Preprocessor {
    /// Stages the image's bytes, for [`finish`] to do the remaining work on `device`. Returns `None` where
    /// the CPU has to do it all, because the device does not support the recipe or the image is too large.
    pub(super) fn stage(&self, image: &RgbImage, image_size: [u32; 2], device: Device) -> Option<Pixels> {
        let (height, width, _) = self.resizing()?;
        let sides = [i64::from(image.height()), i64::from(image.width())];
        let fits = |(side, to): (&i64, i64)| (1..=to * SHRINK_MAX).contains(side);
        let bytes = image.as_raw().len() as u64;
        // Thin images have more values between the passes than pixels.
        let between = u64::from(image.height()) * width as u64 * 3;
        if bytes.max(between) > IMAGE_BYTES_MAX || !sides.iter().zip([height, width]).all(fits) {
            return None;
        }
        let share = Share::take(bytes)?;
        match pinned(image.as_raw(), &[sides[0], sides[1], 3], device) {
            Ok(values) => {
                let rest = Rest { preprocessor: self.clone(), _share: share };
                Some(Pixels { values, layout: PixelLayout::Bytes, image_size, rest: Some(Box::new(rest)) })
            }
            Err(error) => {
                tell_once(&error);
                None
            }
        }
    }

    /// Returns the height, width and filter of a recipe that a device supports.
    fn resizing(&self) -> Option<(i64, i64, Filter)> {
        match self.recipe {
            Recipe::ResizeFloat { height, width, filter } | Recipe::ResizeBytes { height, width, filter } => {
                Some((height, width, filter))
            }
            Recipe::NaFlex { .. } | Recipe::Tiles(_) | Recipe::Bytes => None,
        }
    }

    /// Resizes bytes [height, width, 3] on the host to [1, 3, height, width] of the model's size on the
    /// device, fp32 and not yet normalised. Waits for nothing.
    fn resized_on(&self, bytes: &Tensor, device: Device) -> Tensor {
        let Some((height, width, filter)) = self.resizing() else { return bytes.to_device(device) };
        let there = bytes.internal_to_copy((Kind::Uint8, device), true);
        // Permuted while they are bytes, which is cheaper: the kernel wants one channel after the other, and
        // would make its own copy.
        let mut x = there.permute([2, 0, 1]).unsqueeze(0).contiguous().to_kind(Kind::Float);
        drop(there);
        if matches!(self.recipe, Recipe::ResizeFloat { .. }) {
            let _same = x.g_mul_scalar_(self.rescale);
            return filter.resize(&x, height, width);
        }
        let rows = x.size()[2];
        // Halves are rounded up, as in the CPU's integer arithmetic; `round` would take them to the nearest
        // even number.
        let levels = |x: &Tensor| (x + 0.5).floor().clamp(0.0, 255.0);
        levels(&filter.resize(&levels(&filter.resize(&x, rows, width)), height, width))
    }

    /// Normalises [images, 3, height, width] from [`resized_on`](Self::resized_on) in place. Uses one scalar
    /// for each channel, because a tensor of them would have to be copied to the device, which blocks.
    fn normalise_in_place(&self, x: &Tensor) {
        let rescale = if matches!(self.recipe, Recipe::ResizeFloat { .. }) { 1.0 } else { self.rescale };
        for (channel, (mean, std)) in (0..).zip(self.mean.into_iter().zip(self.std)) {
            let mut plane = x.select(1, channel);
            let _same = plane.g_sub_scalar_(mean / rescale).g_div_scalar_(std / rescale);
        }
    }
}

impl Filter {
    /// Resizes with antialiasing, [1, 3, …] → [1, 3, height, width].
    fn resize(self, x: &Tensor, height: i64, width: i64) -> Tensor {
        match self {
            Self::Bilinear => {
                x.internal_upsample_bilinear2d_aa([height, width], false, None::<f64>, None::<f64>)
            }
            Self::Bicubic => {
                x.internal_upsample_bicubic2d_aa([height, width], false, None::<f64>, None::<f64>)
            }
        }
    }
}

/// Returns the batch [images, 3, height, width] on the device in fp32, with the remaining work of each image
/// done, or `None` where no work is left for any of them.
pub(super) fn finish(images: &[&Pixels], device: Device) -> Option<Tensor> {
    let rests = || images.iter().filter_map(|image| image.rest.as_ref().map(|rest| (rest, &image.values)));
    let (first, _) = rests().next()?;
    // All images are of one model, and hence of one recipe.
    let resized: Vec<Tensor> =
        rests().map(|(rest, bytes)| rest.preprocessor.resized_on(bytes, device)).collect();
    let finished = Tensor::cat(&resized, 0);
    first.preprocessor.normalise_in_place(&finished);
    if resized.len() == images.len() {
        return Some(finished);
    }
    let mut next = 0;
    let rows: Vec<Tensor> = images
        .iter()
        .map(|image| match image.rest {
            Some(_) => {
                next += 1;
                finished.get(next - 1)
            }
            None => image.values.to_device(device),
        })
        .collect();
    Some(Tensor::stack(&rows, 0))
}

fn tell_once(error: &LibtorchError) {
    REFUSED.call_once(|| {
        tracing::warn!(%error, "no page-locked memory: images are preprocessed on the CPU");
    });
}
