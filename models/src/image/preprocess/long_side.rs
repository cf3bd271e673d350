//! Resizes an image whose proportions make libtorch's order too expensive: the longer side first, one line of
//! the result after the other.
//!
//! The weights are those of Pillow's `Resample.c`, which libtorch computes as well, but for one line at a time
//! instead of a table for the whole side.

use std::ops::Range;

use ::image::RgbImage;
use tch::{Device, Kind, TchError, Tensor};

use super::Filter;
use super::limits::PreprocessLimits;
use super::resize::{CHANNELS_SECOND, Resize, Samples, resize};
use crate::ModelError;

/// An image as lines across its longer side.
struct Lines<'image> {
    image: &'image RgbImage,
    /// True if the lines are rows, because the image is at least as high as wide; columns otherwise.
    are_rows: bool,
}

/// The lines of which one line of the result is the weighted mean.
#[derive(Debug)]
struct Window {
    filter: Filter,
    lines: Range<usize>,
    /// The middle, in lines.
    centre: f64,
    /// The number of lines that the filter's unit spans.
    unit: f64,
}

impl Resize {
    /// Resizes an image to [1, 3, height, width], the longer side first.
    ///
    /// # Errors
    /// Fails when libtorch does, or when the work is not wanted any more.
    pub(super) fn long_side_first(
        &self,
        image: &RgbImage,
        limits: &PreprocessLimits<'_>,
    ) -> Result<Tensor, ModelError> {
        let lines = Lines { image, are_rows: image.height() >= image.width() };
        let (to_lines, to_across) =
            if lines.are_rows { (self.height, self.width) } else { (self.width, self.height) };
        let across = lines.across();
        let counts = Self::line_counts(u64::from(across), limits.max_scratch_bytes);
        let (block, chunk) = (counts.block as usize, counts.chunk as usize);
        let mut blocks = Vec::new();
        for start in (0..to_lines).step_by(block) {
            let end = to_lines.min(start + block as i64);
            let shrunk: Vec<Tensor> = (start..end)
                .map(|line| Window::new(self.filter, line, lines.count(), to_lines))
                .map(|window| lines.mean(&window, chunk, limits))
                .collect::<Result<_, _>>()?;
            let size = [1, end - start, i64::from(across), 3];
            let shrunk = self.samples_of(Tensor::f_cat(&shrunk, 0)?)?.f_view(size)?;
            blocks.push(resize(&shrunk.f_permute(CHANNELS_SECOND)?, end - start, to_across, self.filter)?);
        }
        let resized = Tensor::f_cat(&blocks, 2)?;
        Ok(if lines.are_rows { resized } else { resized.f_transpose(2, 3)? })
    }

    /// Converts means of bytes to the values that are resized.
    fn samples_of(&self, mut means: Tensor) -> Result<Tensor, TchError> {
        match self.samples {
            // Halves are rounded up, as in libtorch's integer arithmetic.
            Samples::Bytes => {
                means.f_add_scalar_(0.5)?.f_floor_()?.f_clamp_(0.0, 255.0)?.f_to_kind(Kind::Uint8)
            }
            Samples::Floats { factor } => means.f_mul_scalar_(factor),
        }
    }
}

impl Lines<'_> {
    fn count(&self) -> u32 {
        self.image.height().max(self.image.width())
    }

    /// Returns the number of pixels of a line.
    fn across(&self) -> u32 {
        self.image.height().min(self.image.width())
    }

    /// Returns the weighted mean of a window's lines, [1, across · 3] in fp32, from `chunk` lines at a time.
    fn mean(
        &self,
        window: &Window,
        chunk: usize,
        limits: &PreprocessLimits<'_>,
    ) -> Result<Tensor, ModelError> {
        let width = i64::from(self.across()) * 3;
        let mut sum = Tensor::f_zeros([1, width], (Kind::Float, Device::Cpu))?;
        let mut total = 0.0;
        for start in window.lines.clone().step_by(chunk) {
            limits.check_wanted()?;
            let lines = start..window.lines.end.min(start + chunk);
            let weights: Vec<f32> = lines.clone().map(|line| window.weight(line) as f32).collect();
            total += weights.iter().copied().map(f64::from).sum::<f64>();
            let weights = Tensor::f_from_slice(&weights)?.f_view([1, -1])?;
            let values = self.bytes(lines)?.f_view([-1, width])?.f_to_kind(Kind::Float)?;
            sum = sum.f_add(&weights.f_matmul(&values)?)?;
        }
        Ok(sum.f_div_scalar_(total)?)
    }

    /// Returns the bytes of some lines, one line after the other.
    fn bytes(&self, lines: Range<usize>) -> Result<Tensor, TchError> {
        let row_bytes = self.image.width() as usize * 3;
        let pixels = self.image.as_raw();
        if self.are_rows {
            return Tensor::f_from_slice(&pixels[lines.start * row_bytes..lines.end * row_bytes]);
        }
        let mut gathered = Vec::with_capacity(lines.len() * self.across() as usize * 3);
        for column in lines {
            for row in pixels.chunks_exact(row_bytes) {
                gathered.extend_from_slice(&row[column * 3..column * 3 + 3]);
            }
        }
        Tensor::f_from_slice(&gathered)
    }
}

impl Window {
    /// Returns the window of one of `to` lines that are made of `from` lines.
    fn new(filter: Filter, line: i64, from: u32, to: i64) -> Self {
        let scale = f64::from(from) / to as f64;
        let unit = scale.max(1.0);
        let centre = (line as f64 + 0.5) * scale;
        let reach = filter.radius() * unit;
        // The conversions cut off at zero.
        let lines = (centre - reach + 0.5) as usize..((centre + reach + 0.5) as usize).min(from as usize);
        Self { filter, lines, centre, unit }
    }

    /// Returns the weight of a line, not yet divided by the sum of all.
    fn weight(&self, line: usize) -> f64 {
        self.filter.weight((line as f64 + 0.5 - self.centre) / self.unit)
    }
}

impl Filter {
    /// Returns the distance from which on the weight is 0.
    fn radius(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// Returns the weight at a distance: a triangle, or the cubic convolution of Keys with a = −0.5, the
    /// variant of Pillow.
    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::preprocess::tests::sample_image;

    #[test]
    fn the_longer_side_first_gives_the_values_of_one_call_up_to_rounding() {
        // Little memory, for several chunks of lines and several blocks.
        let limits = PreprocessLimits { max_scratch_bytes: 1 << 18, ..PreprocessLimits::default() };
        let sizes = [(640, 427), (427, 640), (1, 5000), (5000, 1), (3, 2000), (1, 1), (300, 300), (20, 31)];
        for (width, height) in sizes {
            let image = sample_image(width, height);
            for [to_height, to_width] in [[64, 64], [224, 224], [17, 301], [300, 300]] {
                for (samples, filter, tolerances) in [
                    (Samples::Floats { factor: 1.0 }, Filter::Bilinear, [0.02, 0.002]),
                    (Samples::Floats { factor: 1.0 }, Filter::Bicubic, [0.02, 0.002]),
                    (Samples::Bytes, Filter::Bilinear, [2.0, 0.6]),
                    // What overshoots at hard edges is cut off after each pass.
                    (Samples::Bytes, Filter::Bicubic, [30.0, 1.0]),
                ] {
                    let to = Resize { samples, filter, height: to_height, width: to_width };
                    let size = [1, i64::from(height), i64::from(width), 3];
                    let bytes = Tensor::from_slice(image.as_raw()).view(size).permute(CHANNELS_SECOND);
                    let whole = match samples {
                        Samples::Bytes => bytes,
                        Samples::Floats { .. } => bytes.to_kind(Kind::Float),
                    };
                    let expected = resize(&whole, to_height, to_width, filter).unwrap();
                    let ours = to.long_side_first(&image, &limits).unwrap();
                    assert_eq!((ours.size(), ours.kind()), (expected.size(), expected.kind()));
                    let levels = (ours.to_kind(Kind::Float) - expected.to_kind(Kind::Float)).abs();
                    let found = [levels.max(), levels.mean(None)].map(|it| it.double_value(&[]));
                    let what =
                        format!("{to:?} of {width} × {height}: {found:?} levels at most and on average");
                    println!("{what}");
                    assert!(found[0] <= tolerances[0] && found[1] <= tolerances[1], "{what}");
                }
            }
        }
    }
}
