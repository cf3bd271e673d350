//! Streaks that look like rain: short bright lines, all in one direction, before a haze.

use image::RgbImage;

use super::super::random::SplitMix64;
use super::Severity;

/// The share of the picture that streaks would cover if none lay on another.
const COVERED: [f64; 5] = [0.04, 0.08, 0.13, 0.19, 0.27];
/// Length of a streak, as a part of the shorter side.
const LENGTH: [f64; 5] = [0.12, 0.15, 0.18, 0.22, 0.26];
/// Its width, as a part of the shorter side; never less than a pixel.
const WIDTH: f64 = 0.008;
/// How much of what is behind it a streak hides.
const OPACITY: f64 = 0.65;
/// How much of the whole picture the haze hides.
const HAZE: [f64; 5] = [0.04, 0.08, 0.12, 0.17, 0.22];
/// Of streaks and haze, of 255: water shows the sky.
const BRIGHTNESS: f64 = 205.0;
/// The furthest that rain falls from the vertical, in radians: 20 degrees.
const SLANT_MAX: f64 = 0.35;
/// Points of a streak lie so far apart, in pixels, so that it has no gaps.
const STEP: f64 = 0.5;

/// Adds rain.
pub(super) fn add(picture: &mut RgbImage, severity: Severity, random: &mut SplitMix64) {
    let mut layer = Layer::new(picture);
    let shorter = f64::from(picture.width().min(picture.height()));
    let (length, width) = (shorter * severity.of(LENGTH), (shorter * WIDTH).max(1.0));
    let slant = (2.0 * random.unit() - 1.0) * SLANT_MAX;
    let area = f64::from(picture.width()) * f64::from(picture.height());
    let streaks = (severity.of(COVERED) * area / (length * width)).ceil() as usize;
    for _ in 0..streaks {
        let (x, y) =
            (random.unit() * f64::from(picture.width()), random.unit() * f64::from(picture.height()));
        layer.streak((x, y), (length, width), slant);
    }
    layer.blend_into(picture, severity.of(HAZE));
}

/// How much of each pixel streaks cover, from 0 to 1.
struct Layer {
    width: usize,
    height: usize,
    covered: Vec<f64>,
}

impl Layer {
    fn new(picture: &RgbImage) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Self { width, height, covered: vec![0.0; width * height] }
    }

    /// Around this point.
    fn streak(&mut self, (x, y): (f64, f64), (length, width): (f64, f64), slant: f64) {
        let (along, across) = ((slant.sin(), slant.cos()), (slant.cos(), -slant.sin()));
        let steps = |extent: f64| {
            let count = (extent / STEP).ceil().max(1.0) as i64;
            (0..count).map(move |step| ((step as f64 + 0.5) / count as f64 - 0.5) * extent)
        };
        for forward in steps(length) {
            for sideways in steps(width) {
                let at = (
                    x + forward * along.0 + sideways * across.0,
                    y + forward * along.1 + sideways * across.1,
                );
                self.dot(at);
            }
        }
    }

    /// A point, shared out to the four pixels around it.
    fn dot(&mut self, (x, y): (f64, f64)) {
        let (left, top) = (x.floor(), y.floor());
        for (column, part_x) in [(left, 1.0 - (x - left)), (left + 1.0, x - left)] {
            for (row, part_y) in [(top, 1.0 - (y - top)), (top + 1.0, y - top)] {
                let is_within =
                    column >= 0.0 && row >= 0.0 && column < self.width as f64 && row < self.height as f64;
                if is_within {
                    let covered = &mut self.covered[row as usize * self.width + column as usize];
                    // A pixel has four points of a streak that runs through it.
                    *covered = (*covered + part_x * part_y * STEP * STEP).min(1.0);
                }
            }
        }
    }

    fn blend_into(&self, picture: &mut RgbImage, haze: f64) {
        for (pixel, covered) in picture.pixels_mut().zip(&self.covered) {
            let hidden = 1.0 - (1.0 - haze) * (1.0 - OPACITY * covered);
            for sample in &mut pixel.0 {
                *sample = (f64::from(*sample) * (1.0 - hidden) + BRIGHTNESS * hidden).round() as u8;
            }
        }
    }
}
