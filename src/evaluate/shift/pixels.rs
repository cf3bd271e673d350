//! Corruptions that treat each pixel by itself, or hide some.

use image::{Rgb, RgbImage};

use super::super::random::SplitMix64;

/// What hides a part of a picture.
const GREY: Rgb<u8> = Rgb([128; 3]);

/// Adds to each channel of each pixel; `deviation` is of a range from 0 to 1.
pub(super) fn add_noise(picture: &mut RgbImage, deviation: f64, random: &mut SplitMix64) {
    let noisy = |sample: &mut u8, normal: f64| {
        *sample = (f64::from(*sample) + 255.0 * deviation * normal).round().clamp(0.0, 255.0) as u8;
    };
    for samples in picture.chunks_mut(2) {
        let (one, other) = random.normal_pair();
        for (sample, normal) in samples.iter_mut().zip([one, other]) {
            noisy(sample, normal);
        }
    }
}

/// Leaves this share of the light.
pub(super) fn darken(picture: &mut RgbImage, light: f64) {
    for sample in picture.iter_mut() {
        *sample = (f64::from(*sample) * light).round() as u8;
    }
}

/// Hides this share of the picture behind a grey rectangle of the picture's proportions, anywhere in it.
pub(super) fn hide_square(picture: &mut RgbImage, share: f64, random: &mut SplitMix64) {
    let hidden = |side: u32| ((f64::from(side) * share.sqrt()).round() as u32).clamp(1, side);
    let (width, height) = (hidden(picture.width()), hidden(picture.height()));
    let mut place = |room: u32| random.below(room as usize + 1) as u32;
    let (left, top) = (place(picture.width() - width), place(picture.height() - height));
    for y in top..top + height {
        for x in left..left + width {
            picture.put_pixel(x, y, GREY);
        }
    }
}
