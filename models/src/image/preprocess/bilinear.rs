//! Resizes an image without antialiasing, from nothing but the four pixels that each value depends on, so
//! that no copy of the image is made.
//!
//! Repeats the fp32 arithmetic of libtorch's `upsample_bilinear2d` for one channel (`Interpolate` in PyTorch's
//! `UpSampleKernel.cpp`, whose compiler fuses multiplications and additions), which is also what several
//! threads run for three channels. A single thread runs another kernel, which after rounding differs by one
//! level in about five values of a million.

use ::image::RgbImage;
use tch::{TchError, Tensor};

/// The two lines of pixels between which a line of the result lies, with their weights.
struct Pair {
    lines: [usize; 2],
    weights: [f32; 2],
}

/// Resizes in fp32 and rounds to whole numbers from 0 to 255, → [1, 3, height, width].
pub(super) fn resize_rounded(image: &RgbImage, [height, width]: [i64; 2]) -> Result<Tensor, TchError> {
    let (rows, columns) = (pairs(image.height(), height), pairs(image.width(), width));
    let row_bytes = image.width() as usize * 3;
    let mut values = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in &rows {
        let [above, below] = row.lines.map(|line| &image.as_raw()[line * row_bytes..(line + 1) * row_bytes]);
        for column in &columns {
            for channel in 0..3 {
                let [left, right] = column.lines.map(|line| line * 3 + channel);
                let along = |bytes: &[u8]| column.mean(f32::from(bytes[left]), f32::from(bytes[right]));
                values.push(row.mean(along(above), along(below)));
            }
        }
    }
    Tensor::f_from_slice(&values)?.f_view([1, height, width, 3])?.f_permute([0, 3, 1, 2])?.f_round()
}

/// Returns the pairs of lines for each of `to` lines that are made of `from` lines.
fn pairs(from: u32, to: i64) -> Vec<Pair> {
    let scale = from as f32 / to as f32;
    let last = from as usize - 1;
    let pair = |line: i64| {
        let place = scale.mul_add(line as f32 + 0.5, -0.5).max(0.0);
        let first = (place as usize).min(last);
        let second_weight = (place - first as f32).clamp(0.0, 1.0);
        Pair { lines: [first, (first + 1).min(last)], weights: [1.0 - second_weight, second_weight] }
    };
    (0..to).map(pair).collect()
}

impl Pair {
    fn mean(&self, first: f32, second: f32) -> f32 {
        first.mul_add(self.weights[0], second * self.weights[1])
    }
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::image::preprocess::tests::sample_image;

    #[test]
    fn values_are_those_of_libtorch_for_one_channel_after_the_other() {
        let (mut values, mut others) = (0, 0);
        for (width, height) in [(640, 427), (1, 300), (300, 1), (1, 1), (99, 80), (2000, 1500), (378, 644)] {
            let image = sample_image(width, height);
            let size = [1, i64::from(height), i64::from(width), 3];
            let bytes = Tensor::from_slice(image.as_raw()).view(size).permute([0, 3, 1, 2]);
            for target in [[378, 378], [644, 910], [112, 90]] {
                let planes: Vec<Tensor> = (0..3)
                    .map(|channel| bytes.narrow(1, channel, 1).to_kind(Kind::Float).contiguous())
                    .map(|plane| plane.upsample_bilinear2d(target, false, None::<f64>, None::<f64>).round())
                    .collect();
                let expected = Tensor::cat(&planes, 1);
                let ours = resize_rounded(&image, target).unwrap();
                assert_eq!((ours.size(), ours.kind()), (expected.size(), Kind::Float));
                let levels = (&ours - expected).abs();
                assert!(levels.max().double_value(&[]) <= 1.0, "{width} × {height} to {target:?}");
                others += levels.gt(0.0).sum(Kind::Int64).int64_value(&[]);
                values += i64::try_from(ours.numel()).unwrap();
            }
        }
        println!("{others} of {values} values differ");
        // None with AVX2. A processor without fused multiplications rounds otherwise.
        assert!(others * 1000 < values, "{others} of {values} values differ");
    }
}
