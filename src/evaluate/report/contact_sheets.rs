//! Contact sheets: the images that are most worth a look, with the answers to them.

use std::cmp::Reverse;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use concord_models::{ImageLimits, decode};
use concord_policy::{Member, Verdict};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use serde::Serialize;

use super::charts::Shown;
use crate::evaluate::dataset::Example;
use crate::evaluate::metrics::argmax;
use crate::evaluate::shift::ShiftResult;

/// The number of images on a sheet.
const CARDS_MAX: usize = 48;
/// The longer side of a thumbnail, in pixels; smaller images keep their size.
const SIDE_MAX: u32 = 128;
const JPEG_QUALITY: u8 = 82;
/// The largest thumbnail in bytes; a larger one, which none of that size should be, is left out.
const THUMBNAIL_BYTES_MAX: usize = 32 << 10;

/// Formats a probability with a no-break space.
fn percent(probability: f64) -> String {
    super::percent(probability).replace(' ', "\u{a0}")
}

/// A function that reads the file of an image.
pub(crate) type ReadImage<'a> = &'a dyn Fn(&Example) -> Result<Vec<u8>, String>;

/// A contact sheet: images that have something in common.
#[derive(Debug, Serialize)]
pub(crate) struct Sheet {
    title: String,
    caption: String,
    cards: Vec<Card>,
}

/// One image, with the answers to it.
#[derive(Debug, Serialize)]
struct Card {
    /// A `data:` URL; `None` if the image could not be read again.
    thumbnail: Option<String>,
    name: String,
    truth: String,
    answer: String,
    confidence: String,
    is_right: bool,
    models: Vec<ModelAnswer>,
}

#[derive(Debug, Serialize)]
struct ModelAnswer {
    model: String,
    answer: String,
    probability: String,
    is_right: bool,
}

/// Returns the sheets of the most confident mistakes, and of the images that the models disagree about most.
///
/// # Errors
/// When an image has no answer.
pub(crate) fn sheets(
    shown: &Shown<'_>,
    read: ReadImage<'_>,
    limits: ImageLimits,
) -> Result<Vec<Sheet>, String> {
    let cascade = shown.cascade().ok_or("an image has no answer")?;
    let card = |index: usize| card(shown, index, &cascade[index], read, limits);
    let mistakes = most(
        cascade
            .iter()
            .zip(shown.images)
            .map(|(answer, image)| (answer.label() != image.label).then(|| answer.confidence().get())),
    );
    let disputed = most((0..shown.images.len()).map(|image| {
        let probabilities = members_probabilities(shown, image)?;
        let first = argmax(probabilities.first()?);
        let is_disputed = probabilities.iter().any(|of_member| argmax(of_member) != first);
        is_disputed.then(|| divergence(&probabilities))
    }));
    let (mistakes_all, disputed_all) = (mistakes.len(), disputed.len());
    let sheet = |title: &str, caption: String, chosen: &[usize]| Sheet {
        title: title.to_owned(),
        caption,
        cards: chosen.iter().take(CARDS_MAX).map(|index| card(*index)).collect(),
    };
    let of = |all: usize| match all {
        0 => "No".to_owned(),
        _ => format!("{} of {all}", all.min(CARDS_MAX)),
    };
    Ok(vec![
        sheet(
            "Most confident mistakes of the cascade",
            format!("{} wrong answers, the most confident first.", of(mistakes_all)),
            &mistakes,
        ),
        sheet(
            "Where the models disagree most",
            format!(
                "{} images on which the models' answers differ, by the Jensen–Shannon divergence of their calibrated \
                 probabilities.",
                of(disputed_all)
            ),
            &disputed,
        ),
    ])
}

/// A corrupted image.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    name: String,
    thumbnail: Option<String>,
}

/// Returns one image, the first of the last label, under each corruption; empty if no corruption was
/// requested.
pub(crate) fn samples(shown: &Shown<'_>, read: ReadImage<'_>, limits: ImageLimits) -> Vec<Sample> {
    let label = |image: &usize| shown.images[*image].label;
    let last = (0..shown.images.len()).max_by_key(|image| (label(image), Reverse(*image)));
    let file = last.and_then(|image| read(shown.examples[image]).ok());
    let Some(file) = file else { return Vec::new() };
    let sample = |shift_result: &ShiftResult| {
        let corrupted =
            shift_result.corruption.map_or(Ok(file.clone()), |corruption| corruption.apply(&file, limits));
        Sample {
            name: shift_result.name(),
            thumbnail: corrupted.ok().and_then(|corrupted| data_url(&corrupted, limits)),
        }
    };
    shown.shift_results.iter().map(sample).collect()
}

/// Returns the indices that have a value, the highest value first; equal ones keep their order.
fn most(values: impl Iterator<Item = Option<f64>>) -> Vec<usize> {
    let mut found: Vec<(usize, f64)> =
        values.enumerate().filter_map(|(index, value)| Some((index, value?))).collect();
    found.sort_by(|one, other| other.1.total_cmp(&one.1));
    found.into_iter().map(|(index, _)| index).collect()
}

/// Returns the calibrated probabilities of every model for an image.
fn members_probabilities(shown: &Shown<'_>, image: usize) -> Option<Vec<Vec<f64>>> {
    let members = shown.policy.members().enumerate();
    members.map(|(index, member)| shown.member_probabilities(index, image, member.calibration())).collect()
}

/// Returns the Jensen–Shannon divergence of distributions, in nats: the entropy of their mean less the mean
/// of their entropies (Lin 1991, "Divergence measures based on the Shannon entropy").
fn divergence(distributions: &[Vec<f64>]) -> f64 {
    let entropy = |distribution: &[f64]| -> f64 {
        distribution.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
    };
    let count = distributions.len().max(1) as f64;
    let labels = distributions.first().map_or(0, Vec::len);
    let mean: Vec<f64> = (0..labels)
        .map(|label| distributions.iter().map(|distribution| distribution[label]).sum::<f64>() / count)
        .collect();
    entropy(&mean) - distributions.iter().map(|distribution| entropy(distribution)).sum::<f64>() / count
}

fn card(shown: &Shown<'_>, index: usize, answer: &Verdict, read: ReadImage<'_>, limits: ImageLimits) -> Card {
    let (truth, labels) = (shown.images[index].label, shown.policy.labels());
    let model_answer = |(member, probabilities): (&Member, Vec<f64>)| {
        let best = argmax(&probabilities);
        ModelAnswer {
            model: member.model().to_string(),
            answer: labels[best].clone(),
            probability: percent(probabilities[best]),
            is_right: best == truth,
        }
    };
    let probabilities = members_probabilities(shown, index).unwrap_or_default();
    let example = shown.examples[index];
    Card {
        thumbnail: read(example).ok().and_then(|file| data_url(&file, limits)),
        name: example.name.clone(),
        truth: labels[truth].clone(),
        answer: labels[answer.label()].clone(),
        confidence: percent(answer.confidence().get()),
        is_right: answer.label() == truth,
        models: shown.policy.members().zip(probabilities).map(model_answer).collect(),
    }
}

/// Returns a thumbnail of an image as a `data:` URL.
fn data_url(file: &[u8], limits: ImageLimits) -> Option<String> {
    let mut image = decode(file, limits).ok()?;
    let longer = image.width().max(image.height());
    if longer > SIDE_MAX {
        let scaled = |side: u32| (u64::from(side) * u64::from(SIDE_MAX) / u64::from(longer)).max(1) as u32;
        image = thumbnail(&image, scaled(image.width()), scaled(image.height()));
    }
    let mut bytes = Vec::new();
    let (width, height) = image.dimensions();
    JpegEncoder::new_with_quality(Cursor::new(&mut bytes), JPEG_QUALITY)
        .encode(image.as_raw(), width, height, ExtendedColorType::Rgb8)
        .ok()?;
    (bytes.len() <= THUMBNAIL_BYTES_MAX)
        .then(|| format!("data:image/jpeg;base64,{}", STANDARD.encode(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_nothing_among_equals_and_most_among_opposites() {
        assert!(divergence(&[vec![0.3, 0.7], vec![0.3, 0.7]]).abs() < 1e-12);
        let opposite = divergence(&[vec![1.0, 0.0], vec![0.0, 1.0]]);
        assert!((opposite - 2.0_f64.ln()).abs() < 1e-12, "{opposite}");
        assert!(divergence(&[vec![0.9, 0.1], vec![0.2, 0.8]]) < opposite);
    }

    #[test]
    fn the_highest_come_first() {
        assert_eq!(most([Some(0.2), None, Some(0.9), Some(0.2)].into_iter()), [2, 0, 3]);
    }

    #[test]
    fn a_large_image_is_scaled_down_and_a_file_that_is_no_image_has_no_thumbnail() {
        let large = image::RgbImage::from_fn(900, 300, |x, y| image::Rgb([x as u8, y as u8, 90]));
        let mut file = Cursor::new(Vec::new());
        large.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let address = data_url(file.get_ref(), ImageLimits::default()).unwrap();
        let bytes = STANDARD.decode(address.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        assert_eq!(decode(&bytes, ImageLimits::default()).unwrap().dimensions(), (128, 42));
        assert_eq!(data_url(b"no image", ImageLimits::default()), None);
    }
}
