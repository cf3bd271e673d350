//! Resizes an image with antialiasing, in bounded memory.
//!
//! libtorch makes two passes, along the rows to the new width and then along the columns, and each value of a
//! pass depends on one row or one column alone. So the first pass can take the rows in strips, which gives
//! every value bit for bit, and in half the time for twelve megapixels in fp32, because a strip stays in the
//! processor's cache. What does not fit even so is left to [`long_side`](super::long_side).

use ::image::RgbImage;
use tch::{Device, Kind, TchError, Tensor};

use super::Filter;
use super::limits::PreprocessLimits;
use super::scratch::Order;
use crate::ModelError;

/// A resize of images to one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resize {
    pub(super) samples: Samples,
    pub(super) filter: Filter,
    pub(super) height: i64,
    pub(super) width: i64,
}

/// The type of the values that are resized.
#[derive(Debug, Clone, Copy)]
pub(super) enum Samples {
    /// Bytes, rounded after each pass.
    Bytes,
    /// fp32 values, multiplied by a factor beforehand.
    Floats { factor: f64 },
}

/// The number of channels of an image.
pub(super) const ALL: usize = 3;

/// A range of channels: the first one and their number.
#[derive(Debug, Clone, Copy)]
struct Channels(i64, i64);

impl Resize {
    /// Resizes an image to [1, 3, height, width].
    ///
    /// # Errors
    /// Fails when libtorch does, or when the work is not wanted any more.
    pub(super) fn apply(
        &self,
        image: &RgbImage,
        limits: &PreprocessLimits<'_>,
    ) -> Result<Tensor, ModelError> {
        limits.check_wanted()?;
        match self.order([image.width(), image.height()], limits.max_scratch_bytes) {
            Order::Strips { rows, channels: ALL } if rows >= u64::from(image.height()) => {
                let whole = self.strip(image, 0, i64::from(image.height()), Channels(0, ALL as i64))?;
                Ok(resize(&whole, self.height, self.width, self.filter)?)
            }
            Order::Strips { rows, channels } => {
                let planes: Vec<Tensor> = (0..ALL as i64)
                    .step_by(channels)
                    .map(|first| Channels(first, channels as i64))
                    .map(|channels| self.in_strips(image, rows as i64, channels, limits))
                    .collect::<Result<_, _>>()?;
                Ok(Tensor::f_cat(&planes, 1)?)
            }
            Order::LongSideFirst => self.long_side_first(image, limits),
        }
    }

    /// Resizes some channels of an image to [1, channels, height, width], with strips of `rows` rows.
    fn in_strips(
        &self,
        image: &RgbImage,
        rows: i64,
        channels: Channels,
        limits: &PreprocessLimits<'_>,
    ) -> Result<Tensor, ModelError> {
        let height = i64::from(image.height());
        let size = [1, height, self.width, channels.1];
        let between = Tensor::f_empty(size, (self.kind(), Device::Cpu))?.f_permute(CHANNELS_SECOND)?;
        for start in (0..height).step_by(rows as usize) {
            limits.check_wanted()?;
            let count = rows.min(height - start);
            let strip = self.strip(image, start, count, channels)?;
            between.f_narrow(2, start, count)?.f_copy_(&resize(&strip, count, self.width, self.filter)?)?;
        }
        limits.check_wanted()?;
        Ok(resize(&between, self.height, self.width, self.filter)?)
    }

    /// Converts rows of the image to [1, channels, rows, width] in the image's own memory layout (channels
    /// last), for which libtorch has its fastest resize.
    fn strip(
        &self,
        image: &RgbImage,
        start: i64,
        rows: i64,
        Channels(first, channels): Channels,
    ) -> Result<Tensor, TchError> {
        let row_bytes = image.width() as usize * 3;
        let range = start as usize * row_bytes..(start + rows) as usize * row_bytes;
        let size = [1, rows, i64::from(image.width()), 3];
        let bytes = Tensor::f_from_slice(&image.as_raw()[range])?.f_view(size)?.f_permute(CHANNELS_SECOND)?;
        self.converted(&bytes.f_narrow(1, first, channels)?)
    }

    /// Converts bytes to the values that are resized.
    fn converted(&self, bytes: &Tensor) -> Result<Tensor, TchError> {
        match self.samples {
            Samples::Bytes => Ok(bytes.shallow_clone()),
            Samples::Floats { factor } => bytes.f_to_kind(Kind::Float)?.f_mul_scalar_(factor),
        }
    }

    fn kind(&self) -> Kind {
        match self.samples {
            Samples::Bytes => Kind::Uint8,
            Samples::Floats { .. } => Kind::Float,
        }
    }
}

/// The order of dimensions that makes [images, height, width, channels] to [images, channels, height, width].
pub(super) const CHANNELS_SECOND: [i64; 4] = [0, 3, 1, 2];

/// Resizes with antialiasing in the tensor's own type, as `torchvision.transforms.v2.functional.resize` does
/// on a CPU.
pub(super) fn resize(x: &Tensor, height: i64, width: i64, filter: Filter) -> Result<Tensor, TchError> {
    match filter {
        Filter::Bilinear => {
            x.f_internal_upsample_bilinear2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
        Filter::Bicubic => {
            x.f_internal_upsample_bicubic2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::preprocess::tests::sample_image;

    #[test]
    fn strips_give_the_values_of_one_call_bit_for_bit() {
        let sizes =
            [(640, 427), (1, 300), (300, 1), (1, 1), (2, 3), (50, 97), (500, 224), (224, 500), (10, 3000)];
        let targets = [(224, 224), (96, 128), (64, 64), (17, 301), (97, 50)];
        let limits = PreprocessLimits::default();
        for (width, height) in sizes {
            let image = sample_image(width, height);
            for (to_height, to_width) in targets {
                for filter in [Filter::Bilinear, Filter::Bicubic] {
                    for (samples, channels) in [
                        (Samples::Bytes, 3),
                        (Samples::Floats { factor: 1.0 / 255.0 }, 3),
                        (Samples::Floats { factor: 1.0 / 255.0 }, 1),
                    ] {
                        let resize = Resize { samples, filter, height: to_height, width: to_width };
                        let all = Channels(0, ALL as i64);
                        let whole = resize.strip(&image, 0, i64::from(height), all).unwrap();
                        let whole = super::resize(&whole, to_height, to_width, filter).unwrap();
                        for rows in [1, 7, 64] {
                            let planes: Vec<Tensor> = (0..3)
                                .step_by(channels)
                                .map(|first| Channels(first, channels as i64))
                                .map(|some| resize.in_strips(&image, rows, some, &limits).unwrap())
                                .collect();
                            let ours = Tensor::cat(&planes, 1);
                            assert_eq!((ours.size(), ours.kind()), (whole.size(), whole.kind()));
                            assert!(
                                ours.equal(&whole),
                                "{resize:?} of {width} × {height}, {channels} channels, {rows} rows"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_photograph_is_resized_to_the_values_of_one_call() {
        let image = sample_image(1600, 1200);
        for samples in [Samples::Bytes, Samples::Floats { factor: 1.0 / 255.0 }] {
            let resize = Resize { samples, filter: Filter::Bicubic, height: 224, width: 224 };
            let whole = resize.strip(&image, 0, 1200, Channels(0, 3)).unwrap();
            let whole = super::resize(&whole, 224, 224, resize.filter).unwrap();
            let ours = resize.apply(&image, &PreprocessLimits::default()).unwrap();
            assert!(ours.equal(&whole), "{samples:?}");
        }
    }
}
