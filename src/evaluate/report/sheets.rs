//! Contact sheets: pictures that are worth a look, with what was said of them.

use std::cmp::Reverse;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use concord_models::decode;
use concord_policy::{Answer, Member};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::thumbnail;
use serde::Serialize;

use super::charts::Shown;
use crate::evaluate::dataset::Example;
use crate::evaluate::metrics::argmax;
use crate::evaluate::shift::Shifted;

/// Pictures on a sheet.
const CARDS_MAX: usize = 48;
/// The longer side of a thumbnail, in pixels; smaller pictures stay as they are.
const SIDE_MAX: u32 = 128;
const JPEG_QUALITY: u8 = 82;
/// A thumbnail of more bytes, which none of that size should have, is left out.
const THUMBNAIL_BYTES_MAX: usize = 32 << 10;

/// A probability, on one line whatever the room.
fn percent(probability: f64) -> String {
    super::percent(probability).replace(' ', "\u{a0}")
}

/// Reads a picture's file.
pub(crate) type ReadPicture<'a> = &'a dyn Fn(&Example) -> Result<Vec<u8>, String>;

/// Pictures of one kind.
#[derive(Debug, Serialize)]
pub(crate) struct Sheet {
    title: String,
    caption: String,
    cards: Vec<Card>,
}

/// One picture, and what was said of it.
#[derive(Debug, Serialize)]
struct Card {
    /// A `data:` address; nothing where it could not be read again.
    thumbnail: Option<String>,
    name: String,
    truth: String,
    answer: String,
    confidence: String,
    is_right: bool,
    models: Vec<Opinion>,
}

#[derive(Debug, Serialize)]
struct Opinion {
    model: String,
    answer: String,
    probability: String,
    is_right: bool,
}

/// The most confident mistakes, and the pictures that the models disagree about most.
///
/// # Errors
/// When a picture has no answer.
pub(crate) fn sheets(
    shown: &Shown<'_>,
    read: ReadPicture<'_>,
    pixels_max: u64,
) -> Result<Vec<Sheet>, String> {
    let cascade = shown.cascade().ok_or("a picture has no answer")?;
    let card = |index: usize| card(shown, index, &cascade[index], read, pixels_max);
    let mistakes = most(
        cascade
            .iter()
            .zip(shown.pictures)
            .map(|(answer, picture)| (answer.label() != picture.label).then(|| answer.confidence().get())),
    );
    let disputed = most((0..shown.pictures.len()).map(|picture| {
        let opinions = opinions(shown, picture)?;
        let first = argmax(opinions.first()?);
        let is_disputed = opinions.iter().any(|opinion| argmax(opinion) != first);
        is_disputed.then(|| divergence(&opinions))
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
            format!("{} wrong answers, the surest first.", of(mistakes_all)),
            &mistakes,
        ),
        sheet(
            "Where the models disagree most",
            format!(
                "{} pictures about which not all models say the same, by the Jensen–Shannon divergence of their \
                 calibrated probabilities.",
                of(disputed_all)
            ),
            &disputed,
        ),
    ])
}

/// A picture as a shift makes it.
#[derive(Debug, Serialize)]
pub(crate) struct Sample {
    name: String,
    thumbnail: Option<String>,
}

/// What each shift does to one picture, the first of the last label; nothing where there are none.
pub(crate) fn samples(shown: &Shown<'_>, read: ReadPicture<'_>, pixels_max: u64) -> Vec<Sample> {
    let label = |picture: &usize| shown.pictures[*picture].label;
    let last = (0..shown.pictures.len()).max_by_key(|picture| (label(picture), Reverse(*picture)));
    let file = last.and_then(|picture| read(shown.examples[picture]).ok());
    let Some(file) = file else { return Vec::new() };
    let sample = |shifted: &Shifted| {
        let worse =
            shifted.corruption.map_or(Ok(file.clone()), |corruption| corruption.apply(&file, pixels_max));
        Sample {
            name: shifted.name(),
            thumbnail: worse.ok().and_then(|worse| data_address(&worse, pixels_max)),
        }
    };
    shown.shifted.iter().map(sample).collect()
}

/// Those that have a value, the highest first; of equal ones the first.
fn most(values: impl Iterator<Item = Option<f64>>) -> Vec<usize> {
    let mut found: Vec<(usize, f64)> =
        values.enumerate().filter_map(|(index, value)| Some((index, value?))).collect();
    found.sort_by(|one, other| other.1.total_cmp(&one.1));
    found.into_iter().map(|(index, _)| index).collect()
}

/// What every model says of a picture, calibrated.
fn opinions(shown: &Shown<'_>, picture: usize) -> Option<Vec<Vec<f64>>> {
    let members = shown.policy.members().enumerate();
    members.map(|(index, member)| shown.opinion(index, picture, member.calibration())).collect()
}

/// How far distributions are from their mean: the entropy of the mean less the mean of the entropies, in nats (Lin 1991,
/// "Divergence measures based on the Shannon entropy").
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

fn card(shown: &Shown<'_>, index: usize, answer: &Answer, read: ReadPicture<'_>, pixels_max: u64) -> Card {
    let (truth, labels) = (shown.pictures[index].label, shown.policy.labels());
    let said = |(member, opinion): (&Member, Vec<f64>)| {
        let best = argmax(&opinion);
        Opinion {
            model: member.model().to_string(),
            answer: labels[best].clone(),
            probability: percent(opinion[best]),
            is_right: best == truth,
        }
    };
    let opinions = opinions(shown, index).unwrap_or_default();
    let example = shown.examples[index];
    Card {
        thumbnail: read(example).ok().and_then(|file| data_address(&file, pixels_max)),
        name: example.name.clone(),
        truth: labels[truth].clone(),
        answer: labels[answer.label()].clone(),
        confidence: percent(answer.confidence().get()),
        is_right: answer.label() == truth,
        models: shown.policy.members().zip(opinions).map(said).collect(),
    }
}

/// The picture made small, as a `data:` address.
fn data_address(file: &[u8], pixels_max: u64) -> Option<String> {
    let mut picture = decode(file, pixels_max).ok()?;
    let longer = picture.width().max(picture.height());
    if longer > SIDE_MAX {
        let scaled = |side: u32| (u64::from(side) * u64::from(SIDE_MAX) / u64::from(longer)).max(1) as u32;
        picture = thumbnail(&picture, scaled(picture.width()), scaled(picture.height()));
    }
    let mut bytes = Vec::new();
    let (width, height) = picture.dimensions();
    JpegEncoder::new_with_quality(Cursor::new(&mut bytes), JPEG_QUALITY)
        .encode(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
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
    fn a_large_picture_becomes_small_and_what_is_none_is_left_out() {
        let large = image::RgbImage::from_fn(900, 300, |x, y| image::Rgb([x as u8, y as u8, 90]));
        let mut file = Cursor::new(Vec::new());
        large.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let address = data_address(file.get_ref(), 1_000_000).unwrap();
        let bytes = STANDARD.decode(address.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
        assert_eq!(decode(&bytes, 1_000_000).unwrap().dimensions(), (128, 42));
        assert_eq!(data_address(b"no picture", 1_000_000), None);
    }
}
