//! The regions in a generated text: `Florence2PostProcessor` in transformers' `processing_florence2.py`.

use super::prompt::Answer;
use super::text::BINS;
use concord_policy::{Region, Shape};

const BOX_BINS: usize = 4;
const QUAD_BINS: usize = 8;
/// The tokens that are cut out of a text before it is parsed.
const MARKS: [&str; 3] = ["<s>", "</s>", "<pad>"];

/// Returns the regions of an answer with its special tokens, in pixels of an image of this width and height.
/// `banned` are phrases of a caption that are about nothing in the image.
pub(super) fn regions(text: &str, answer: Answer, image_size: [u32; 2], banned: &[String]) -> Vec<Region> {
    let text = MARKS.iter().fold(text.to_owned(), |text, mark| text.replace(mark, ""));
    // Masks are polygons, for which there is no shape.
    if text.contains("<poly>") {
        return Vec::new();
    }
    match answer {
        Answer::Text => Vec::new(),
        Answer::Boxes => phrase_boxes(&text, image_size, &[]),
        Answer::Grounding => phrase_boxes(&text, image_size, banned),
        Answer::Proposals => proposals(&text, image_size),
        Answer::Quads => quads(&text, image_size),
    }
}

/// Returns the centre of a location's bin, in whole pixels, as the reference computes it.
fn pixel(bin: i64, side: u32) -> f32 {
    let per_bin = (f64::from(side) / BINS as f64) as f32;
    ((bin as f32 + 0.5) * per_bin).trunc()
}

/// Returns left, top, right and bottom in pixels for each whole four of the bins.
pub(super) fn boxes(bins: &[i64], [width, height]: [u32; 2]) -> Vec<[f32; 4]> {
    let to_box = |bins: &[i64]| match *bins {
        [left, top, right, bottom] => {
            Some([pixel(left, width), pixel(top, height), pixel(right, width), pixel(bottom, height)])
        }
        _ => None,
    };
    bins.chunks_exact(BOX_BINS).filter_map(to_box).collect()
}

/// Parses `([^<]+(?:<loc_\d+>){4,})`: phrases without marks, each followed by at least four locations.
fn phrase_boxes(text: &str, image_size: [u32; 2], banned: &[String]) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (phrase, after) = rest.split_at(rest.find('<').unwrap_or(rest.len()));
        let (bins, length) = leading_locations(after, usize::MAX);
        let label = phrase.trim();
        // The reference looks for the phrase within one line.
        let in_line = !phrase.trim_start().contains('\n');
        if phrase.is_empty() || bins.len() < BOX_BINS {
            // Parsing continues past the mark's first character: what follows it counts as a phrase, as in
            // the reference.
            rest = &after[usize::from(!after.is_empty())..];
            continue;
        }
        if in_line && !banned.iter().any(|banned| banned == label) {
            regions
                .extend(boxes(&bins, image_size).into_iter().map(|shape| region(label, Shape::Box(shape))));
        }
        rest = &after[length..];
    }
    regions
}

/// Parses `(?:<loc_\d+>){4,}`: boxes without phrases.
fn proposals(text: &str, image_size: [u32; 2]) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find('<') {
        let after = &rest[begin..];
        let (bins, length) = leading_locations(after, usize::MAX);
        regions.extend(boxes(&bins, image_size).into_iter().map(|shape| region("", Shape::Box(shape))));
        rest = &after[length.max(1)..];
    }
    regions
}

/// Parses `(.+?)` and eight locations: texts of at least one character within a line, each up to its corners.
fn quads(text: &str, [width, height]: [u32; 2]) -> Vec<Region> {
    let mut regions = Vec::new();
    let mut begin = 0;
    let mut search = 0;
    while let Some(offset) = text[search..].find('<') {
        let at = search + offset;
        search = at + 1;
        begin = text[begin..at].rfind('\n').map_or(begin, |line| begin + line + 1);
        let (bins, length) = leading_locations(&text[at..], QUAD_BINS);
        if bins.len() < QUAD_BINS || at == begin {
            continue;
        }
        let mut shape = [0.0; QUAD_BINS];
        for (index, (value, bin)) in shape.iter_mut().zip(bins).enumerate() {
            *value = pixel(bin, if index % 2 == 0 { width } else { height });
        }
        regions.push(Region { label: text[begin..at].trim().to_owned(), shape: Shape::Quad(shape) });
        begin = at + length;
        search = begin;
    }
    regions
}

/// Returns the locations that the text begins with, at most `most`, and the number of bytes that they take.
fn leading_locations(text: &str, most: usize) -> (Vec<i64>, usize) {
    let (mut bins, mut length) = (Vec::new(), 0);
    while let Some((bin, bytes)) = leading_location(&text[length..]).filter(|_| bins.len() < most) {
        bins.push(bin);
        length += bytes;
    }
    (bins, length)
}

fn leading_location(text: &str) -> Option<(i64, usize)> {
    const BEGIN: &str = "<loc_";
    let (digits, _) = text.strip_prefix(BEGIN)?.split_once('>')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let bin = digits.parse().ok().filter(|_| is_number)?;
    Some((bin, BEGIN.len() + digits.len() + 1))
}

/// Builds a region. Its label keeps only ASCII characters, as in the reference.
fn region(label: &str, shape: Shape) -> Region {
    Region { label: label.chars().filter(char::is_ascii).collect(), shape }
}

/// Returns the boxes that no box before them covers: of two whose intersection is more than `overlap_max` of
/// their union, the first stays.
pub(super) fn without_doubles(regions: Vec<Region>, overlap_max: f32) -> Vec<Region> {
    let mut kept: Vec<Region> = Vec::new();
    for region in regions {
        let is_double = kept.iter().any(|other| overlap(&region.shape, &other.shape) > overlap_max);
        if !is_double {
            kept.push(region);
        }
    }
    kept
}

/// Computes the intersection over union of two boxes.
fn overlap(a: &Shape, b: &Shape) -> f32 {
    let (Shape::Box(a), Shape::Box(b)) = (a, b) else { return 0.0 };
    let area = |[left, top, right, bottom]: [f32; 4]| (right - left).max(0.0) * (bottom - top).max(0.0);
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(*a) + area(*b) - common;
    if union > 0.0 { common / union } else { f32::from(u8::from(a == b)) }
}

#[cfg(test)]
mod tests {
    use super::{Answer, regions, without_doubles};
    use concord_policy::{Region, Shape};

    fn found(text: &str, answer: Answer) -> Vec<(String, Vec<f32>)> {
        let shape = |shape| match shape {
            Shape::Box(sides) => sides.to_vec(),
            Shape::Quad(corners) => corners.to_vec(),
        };
        let regions = regions(text, answer, [200, 150], &["it".to_owned()]);
        regions.into_iter().map(|region| (region.label, shape(region.shape))).collect()
    }

    fn region(label: &str, shape: &[f32]) -> (String, Vec<f32>) {
        (label.to_owned(), shape.to_vec())
    }

    const FOUR: &str = "<loc_0><loc_10><loc_999><loc_500>";
    const PIXELS: [f32; 4] = [0.0, 1.0, 199.0, 75.0];

    #[test]
    fn phrases_have_the_boxes_after_them() {
        for (text, expected) in [
            (format!("</s><s>a car{FOUR}</s>"), vec![region("a car", &PIXELS)]),
            (format!(" a cär {FOUR}{FOUR}<loc_1>"), vec![region("a cr", &PIXELS), region("a cr", &PIXELS)]),
            (
                format!("<and>it{FOUR}cat</od> dog{FOUR}"),
                vec![region("and>it", &PIXELS), region("/od> dog", &PIXELS)],
            ),
            (format!("<od>{FOUR}"), vec![region("od>", &PIXELS)]),
            ("car<loc_1><loc_2><loc_3>".to_owned(), vec![]),
            (format!("<poly>car{FOUR}</poly>"), vec![]),
            ("a < b <loc_".to_owned(), vec![]),
        ] {
            assert_eq!(found(&text, Answer::Boxes), expected, "{text}");
        }
        assert_eq!(found(&format!("it{FOUR}dog{FOUR}"), Answer::Grounding), [region("dog", &PIXELS)]);
        assert_eq!(found(&format!("<od>{FOUR}x{FOUR}"), Answer::Proposals).len(), 2);
        assert_eq!(found(&format!("a car{FOUR}"), Answer::Text), []);
    }

    #[test]
    fn texts_have_the_corners_after_them() {
        let quad = [PIXELS, PIXELS].concat();
        let text = format!("a<b{FOUR}{FOUR}\nSTOP {FOUR}{FOUR}{FOUR}rest");
        let expected = [region("a<b", &quad), region("STOP", &quad)];
        assert_eq!(found(&text, Answer::Quads), expected);
        // The text must have a character, and takes a location if it has no other.
        assert_eq!(found(&format!("{FOUR}{FOUR}"), Answer::Quads), []);
        assert_eq!(found(&format!("<loc_7>{FOUR}{FOUR}"), Answer::Quads), [region("<loc_7>", &quad)]);
    }

    #[test]
    fn of_two_boxes_that_overlap_the_first_stays() {
        let boxed = |label: &str, sides| Region { label: label.to_owned(), shape: Shape::Box(sides) };
        let first = boxed("first", [0.0, 0.0, 10.0, 10.0]);
        let half = boxed("half", [0.0, 0.0, 10.0, 5.0]);
        let most = boxed("most", [0.0, 0.0, 10.0, 6.0]);
        let kept = without_doubles(vec![first.clone(), half.clone(), most], 0.5);
        assert_eq!(kept, [first, half]);
    }
}
