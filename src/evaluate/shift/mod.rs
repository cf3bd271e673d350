//! Pictures as they come on bad days: the same evaluation under named corruptions of five severities, after Hendrycks and
//! Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations" (arXiv 1903.12261).

mod pixels;
mod rain;
mod report;
mod worsening;

use std::io::Cursor;
use std::str::FromStr;

use concord_actors::Digest;
use concord_models::decode;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

use super::random::SplitMix64;
pub(crate) use report::{Shifted, json, print};
pub(super) use report::{plots, rows};
pub(crate) use worsening::{Worsening, dealt, one_of};

/// How pictures are made worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shift {
    /// Out of focus: a Gaussian blur.
    Blur,
    /// A bad sensor: Gaussian noise.
    Noise,
    /// Too little light, and the sensor's noise.
    Dark,
    /// Streaks as of rain, and haze.
    Rain,
    /// Compressed too far.
    Jpeg,
    /// A part hidden behind a grey square.
    Occlusion,
}

impl Shift {
    /// Every one.
    pub(crate) const ALL: [Self; 6] =
        [Self::Blur, Self::Noise, Self::Dark, Self::Rain, Self::Jpeg, Self::Occlusion];

    /// As the command line calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blur => "blur",
            Self::Noise => "noise",
            Self::Dark => "dark",
            Self::Rain => "rain",
            Self::Jpeg => "jpeg",
            Self::Occlusion => "occlusion",
        }
    }
}

/// Shifts, as the command line has them: one by its name, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shifts(Vec<Shift>);

impl FromStr for Shifts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self(Shift::ALL.to_vec()));
        }
        let found = Shift::ALL.into_iter().find(|shift| shift.name() == text);
        found.map(|shift| Self(vec![shift])).ok_or_else(|| {
            let names: Vec<&str> = Shift::ALL.into_iter().map(Shift::name).collect();
            format!("must be one of {}, or all", names.join(", "))
        })
    }
}

/// How strongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Severity(u8);

impl Severity {
    /// The weakest is 1.
    pub(crate) const MAX: u8 = 5;

    /// `None` for what is not from 1 to 5.
    pub(crate) fn new(number: u8) -> Option<Self> {
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// From 1 to 5.
    pub(crate) fn get(self) -> u8 {
        self.0
    }

    /// What this severity has of a parameter.
    fn of<T: Copy>(self, by_severity: [T; Self::MAX as usize]) -> T {
        by_severity[usize::from(self.0 - 1)]
    }
}

/// Severities, as the command line has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeverityRange {
    first: Severity,
    last: Severity,
}

impl SeverityRange {
    /// From the weakest to the strongest.
    pub(crate) fn severities(self) -> impl Iterator<Item = Severity> {
        (self.first.0..=self.last.0).map(Severity)
    }
}

/// `3`, or `1..5` with both ends.
impl FromStr for SeverityRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let severity = |text: &str| text.trim().parse().ok().and_then(Severity::new);
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let ends =
            severity(first).zip(severity(last.trim_start_matches('='))).filter(|(first, last)| first <= last);
        let (first, last) = ends.ok_or("must be from 1 to 5, or a range such as 1..5")?;
        Ok(Self { first, last })
    }
}

/// A shift of some severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corruption {
    pub(crate) shift: Shift,
    pub(crate) severity: Severity,
}

/// Each shift at each severity, once, the weakest first.
pub(crate) fn corruptions(shifts: &[Shifts], severities: &[SeverityRange]) -> Vec<Corruption> {
    let mut severities: Vec<Severity> = severities.iter().flat_map(|range| range.severities()).collect();
    severities.sort_unstable();
    severities.dedup();
    let mut found = Vec::new();
    for shift in shifts.iter().flat_map(|shifts| shifts.0.iter().copied()) {
        for &severity in &severities {
            let corruption = Corruption { shift, severity };
            if !found.contains(&corruption) {
                found.push(corruption);
            }
        }
    }
    found
}

/// Standard deviation of the blur, as a part of the shorter side, chosen here: three to four times theirs, which is 1 to 6
/// of 224 pixels. Of a photograph of 40 pixels theirs left the nano models as right as they were.
const BLUR: [f32; 5] = [0.015, 0.03, 0.05, 0.075, 0.11];
/// Standard deviation of the noise, of a range from 0 to 1: theirs.
const NOISE: [f64; 5] = [0.08, 0.12, 0.18, 0.26, 0.38];
/// What is left of the light, chosen here: they only make brighter.
const LIGHT: [f64; 5] = [0.6, 0.4, 0.25, 0.15, 0.08];
/// Standard deviation of what a sensor adds in the dark, of a range from 0 to 1.
const DARK_NOISE: f64 = 0.015;
/// Quality of the JPEG: theirs.
const JPEG_QUALITY: [u8; 5] = [25, 18, 15, 10, 7];
/// The share of the picture that is hidden, chosen here: by a square as in De Vries and Taylor 2017, "Improved
/// regularization of convolutional neural networks with cutout" (arXiv 1708.04552).
const HIDDEN: [f64; 5] = [0.05, 0.1, 0.18, 0.28, 0.4];

impl Corruption {
    /// In a table.
    pub(crate) fn name(self) -> String {
        format!("{} {}", self.shift.name(), self.severity.get())
    }

    /// The corrupted picture as a file again: of the same file always the same, with chance drawn from its digest. It is a
    /// PNG, which adds nothing of its own; where compression is the corruption, a JPEG.
    ///
    /// # Errors
    /// When it cannot be decoded, in words.
    pub(crate) fn apply(self, file: &[u8], pixels_max: u64) -> Result<Vec<u8>, String> {
        let mut picture = decode(file, pixels_max).map_err(|error| error.to_string())?;
        let mut random = self.random(file);
        let severity = self.severity;
        match self.shift {
            Shift::Blur => {
                let shorter = picture.width().min(picture.height()) as f32;
                picture = image::imageops::blur(&picture, severity.of(BLUR) * shorter);
            }
            Shift::Noise => pixels::add_noise(&mut picture, severity.of(NOISE), &mut random),
            Shift::Dark => {
                pixels::darken(&mut picture, severity.of(LIGHT));
                pixels::add_noise(&mut picture, DARK_NOISE, &mut random);
            }
            Shift::Rain => rain::add(&mut picture, severity, &mut random),
            Shift::Jpeg => {
                let mut bytes = Vec::new();
                let encoder = JpegEncoder::new_with_quality(&mut bytes, severity.of(JPEG_QUALITY));
                return written(&picture, encoder).map(|()| bytes);
            }
            Shift::Occlusion => pixels::hide_square(&mut picture, severity.of(HIDDEN), &mut random),
        }
        let mut bytes = Vec::new();
        let encoder =
            PngEncoder::new_with_quality(Cursor::new(&mut bytes), CompressionType::Fast, FilterType::Sub);
        written(&picture, encoder).map(|()| bytes)
    }

    /// Chance for this picture, shift and severity.
    fn random(self, file: &[u8]) -> SplitMix64 {
        let what = Digest::of(self.name().as_bytes());
        let [first, second, third, fourth, fifth, sixth, seventh, eighth, ..] =
            *what.for_image(&Digest::of(file)).as_bytes();
        SplitMix64::new(u64::from_le_bytes([first, second, third, fourth, fifth, sixth, seventh, eighth]))
    }
}

fn written(picture: &RgbImage, encoder: impl ImageEncoder) -> Result<(), String> {
    let (width, height) = picture.dimensions();
    let written = encoder.write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8);
    written.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
