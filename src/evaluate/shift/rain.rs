//! Simulated rain: short bright streaks, all in one direction, in front of a haze.

use image::RgbImage;

use super::super::rng::Rng;
use super::Severity;

/// The share of the image that the streaks would cover if none overlapped.
const COVERED: [f64; 5] = [0.04, 0.08, 0.13, 0.19, 0.27];
/// The length of a streak, as a share of the shorter side.
const LENGTH: [f64; 5] = [0.12, 0.15, 0.18, 0.22, 0.26];
/// The width of a streak, as a share of the shorter side; at least one pixel.
const WIDTH: f64 = 0.008;
/// The opacity of a streak.
const OPACITY: f64 = 0.65;
/// The opacity of the haze over the whole image.
const HAZE: [f64; 5] = [0.04, 0.08, 0.12, 0.17, 0.22];
/// The brightness of streaks and haze, of 255: water shows the sky.
const BRIGHTNESS: f64 = 205.0;
/// The largest angle of the rain to the vertical, in radians: 20 degrees.
const SLANT_MAX: f64 = 0.35;
/// The distance of the points of a streak, in pixels, at which it has no gaps.
const STEP: f64 = 0.5;

/// Adds rain to an image.
pub(super) fn add(image: &mut RgbImage, severity: Severity, random: &mut Rng) {
    let mut layer = Layer::new(image);
    let shorter = f64::from(image.width().min(image.height()));
    let (length, width) = (shorter * severity.of(LENGTH), (shorter * WIDTH).max(1.0));
    let slant = (2.0 * random.unit() - 1.0) * SLANT_MAX;
    let area = f64::from(image.width()) * f64::from(image.height());
    let streaks = (severity.of(COVERED) * area / (length * width)).ceil() as usize;
    for _ in 0..streaks {
        let (x, y) = (random.unit() * f64::from(image.width()), random.unit() * f64::from(image.height()));
        layer.streak((x, y), (length, width), slant);
    }
    layer.blend_into(image, severity.of(HAZE));
}

/// The share of each pixel that streaks cover, from 0 to 1.
struct Layer {
    width: usize,
    height: usize,
    covered: Vec<f64>,
}

impl Layer {
    fn new(image: &RgbImage) -> Self {
        let (width, height) = (image.width() as usize, image.height() as usize);
        Self { width, height, covered: vec![0.0; width * height] }
    }

    /// Draws a streak around this point.
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

    /// Draws a point, distributed over the four pixels around it.
    fn dot(&mut self, (x, y): (f64, f64)) {
        let (left, top) = (x.floor(), y.floor());
        for (column, part_x) in [(left, 1.0 - (x - left)), (left + 1.0, x - left)] {
            for (row, part_y) in [(top, 1.0 - (y - top)), (top + 1.0, y - top)] {
                let is_within =
                    column >= 0.0 && row >= 0.0 && column < self.width as f64 && row < self.height as f64;
                if is_within {
                    let covered = &mut self.covered[row as usize * self.width + column as usize];
                    // A streak that runs through a pixel has four points in it.
                    *covered = (*covered + part_x * part_y * STEP * STEP).min(1.0);
                }
            }
        }
    }

    fn blend_into(&self, image: &mut RgbImage, haze: f64) {
        for (pixel, covered) in image.pixels_mut().zip(&self.covered) {
            let hidden = 1.0 - (1.0 - haze) * (1.0 - OPACITY * covered);
            for sample in &mut pixel.0 {
                *sample = (f64::from(*sample) * (1.0 - hidden) + BRIGHTNESS * hidden).round() as u8;
            }
        }
    }
}
