//! Corruptions that change each pixel by itself, or hide some of them.

use image::{Rgb, RgbImage};

use super::super::rng::Rng;

/// The colour of the square that hides a part of an image.
const GREY: Rgb<u8> = Rgb([128; 3]);

/// Adds Gaussian noise to each channel of each pixel, with a standard deviation for samples from 0 to 1.
pub(super) fn add_noise(image: &mut RgbImage, deviation: f64, random: &mut Rng) {
    let noisy = |sample: &mut u8, normal: f64| {
        *sample = (f64::from(*sample) + 255.0 * deviation * normal).round().clamp(0.0, 255.0) as u8;
    };
    for samples in image.chunks_mut(2) {
        let (one, other) = random.normal_pair();
        for (sample, normal) in samples.iter_mut().zip([one, other]) {
            noisy(sample, normal);
        }
    }
}

/// Scales the light to this share.
pub(super) fn darken(image: &mut RgbImage, light: f64) {
    for sample in image.iter_mut() {
        *sample = (f64::from(*sample) * light).round() as u8;
    }
}

/// Hides this share of the image behind a grey rectangle of its proportions, at a random place.
pub(super) fn hide_square(image: &mut RgbImage, share: f64, random: &mut Rng) {
    let hidden = |side: u32| ((f64::from(side) * share.sqrt()).round() as u32).clamp(1, side);
    let (width, height) = (hidden(image.width()), hidden(image.height()));
    let mut place = |room: u32| random.below(room as usize + 1) as u32;
    let (left, top) = (place(image.width() - width), place(image.height() - height));
    for y in top..top + height {
        for x in left..left + width {
            image.put_pixel(x, y, GREY);
        }
    }
}
