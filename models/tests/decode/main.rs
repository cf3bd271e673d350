//! Tests that every kind of image decodes to the same RGB as with Pillow, and that everything else is a clear
//! error.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::path::{Path, PathBuf};

use concord_models::{
    DecodeError, DecodedImage, ImageLimits, RgbImage, Scale, declared_size, decode, jpeg_size,
};

mod limits;
mod whole;

const LIMITS: ImageLimits = ImageLimits { max_pixels: 1_000_000, max_scratch_bytes: 16 << 20 };

/// Decodes an image that stays wanted.
fn decode_at(bytes: &[u8], limits: ImageLimits, scale: Scale) -> Result<DecodedImage, DecodeError> {
    concord_models::decode_at(bytes, limits, scale, &|| true)
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

/// Returns the names of the images of every kind.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !name.ends_with(".rgb.png") && !name.ends_with(".py"));
    assert!(names.len() >= 32, "found only {names:?}");
    names
}

#[test]
fn images_of_every_kind_decode_as_with_pillow() {
    for name in names() {
        let found = decode(&read(&name), LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = decode(&read(&format!("{name}.rgb.png")), LIMITS).unwrap();
        assert_eq!(found.dimensions(), expected.dimensions(), "{name}");
        let steps = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert_eq!(steps, 0, "{name}: differs by {steps} of 255");
    }
}

#[test]
fn what_is_no_image_says_so() {
    for (bytes, expected) in [
        (b"".as_slice(), DecodeError::Empty),
        (b"hello, world", DecodeError::NotAnImage),
        (b"%PDF-1.7 ...", DecodeError::NotAnImage),
        (&[0; 64], DecodeError::NotAnImage),
    ] {
        assert_eq!(decode(bytes, LIMITS).unwrap_err(), expected);
    }
}

#[test]
fn the_declared_size_is_that_of_the_stored_image() {
    for name in names() {
        let bytes = read(&name);
        let whole = decode(&bytes, LIMITS).unwrap();
        let mut stored = [whole.width(), whole.height()];
        // Orientations 5 to 8 lie on their side.
        if ["5", "6", "7", "8"].iter().any(|kind| name == format!("orientation_{kind}.jpg")) {
            stored.reverse();
        }
        assert_eq!(declared_size(&bytes), Some(stored), "{name}");
        let header = (0..bytes.len()).find(|&length| declared_size(&bytes[..length]).is_some()).unwrap();
        assert!(
            (header..bytes.len()).all(|length| declared_size(&bytes[..length]) == Some(stored)),
            "{name}"
        );
    }
    assert_eq!(declared_size(b"hello, world"), None);
}

/// Returns the scale of the given number of eighths.
fn scale(eighths: u32) -> Scale {
    Scale::covering([8, 8], [eighths, eighths])
}

/// Returns the mean distance, in levels, of the pixels from the means of the areas of `whole` that they stand
/// for.
fn distance_from_means(small: &RgbImage, whole: &RgbImage) -> f64 {
    let ratio = f64::from(whole.width()) / f64::from(small.width());
    let span = |at: u32, end: u32| {
        let from = (f64::from(at) * ratio).round() as u32;
        from..((f64::from(at + 1) * ratio).round() as u32).min(end).max(from + 1)
    };
    let mut sum = 0.0;
    for (x, y, pixel) in small.enumerate_pixels() {
        let area = || span(y, whole.height()).flat_map(|y| span(x, whole.width()).map(move |x| (x, y)));
        let count = area().count() as f64;
        for (channel, &sample) in pixel.0.iter().enumerate() {
            let mean = area().map(|(x, y)| f64::from(whole.get_pixel(x, y)[channel])).sum::<f64>() / count;
            sum += (f64::from(sample) - mean).abs();
        }
    }
    sum / (f64::from(small.width()) * f64::from(small.height()) * 3.0)
}

#[test]
fn a_jpeg_at_a_scale_is_the_whole_one_made_smaller() {
    let photograph = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/rocket.jpg")).unwrap();
    let whole = decode(&photograph, LIMITS).unwrap();
    for eighths in [1, 2, 3, 4, 8] {
        let small = decode_at(&photograph, LIMITS, scale(eighths)).unwrap();
        let side = |side: u32| (side * eighths).div_ceil(8);
        assert_eq!(small.pixels.dimensions(), (side(whole.width()), side(whole.height())), "{eighths}/8");
        assert_eq!(small.size, [whole.width(), whole.height()], "{eighths}/8");
        if eighths != 3 {
            let distance = distance_from_means(&small.pixels, &whole);
            assert!(distance < 1.0, "{eighths}/8 is {distance:.2} levels from the means");
        }
    }
    assert_eq!(decode_at(&photograph, LIMITS, Scale::WHOLE).unwrap().pixels, whole);
    let half = decode_at(&read("cmyk.jpg"), LIMITS, scale(4)).unwrap();
    assert_eq!((half.pixels.dimensions(), half.size), ((32, 24), [64, 48]));
}

#[test]
fn a_scaled_jpeg_is_upright_too_and_its_size_is_known_before() {
    let upright = decode_at(&read("orientation_1.jpg"), LIMITS, scale(4)).unwrap();
    let (width, height) = upright.pixels.dimensions();
    assert_ne!(width, height, "or the test shows nothing");
    for orientation in 1..=8 {
        let bytes = read(&format!("orientation_{orientation}.jpg"));
        let whole = decode(&bytes, LIMITS).unwrap();
        let small = decode_at(&bytes, LIMITS, scale(4)).unwrap();
        let size = [whole.width(), whole.height()];
        assert_eq!(jpeg_size(&bytes, LIMITS).unwrap(), Some(size), "orientation {orientation}");
        assert_eq!(small.size, size, "orientation {orientation}");
        assert_eq!(small.pixels.dimensions(), (size[0].div_ceil(2), size[1].div_ceil(2)));
    }
}

#[test]
fn what_is_no_jpeg_is_decoded_at_its_full_size() {
    for name in ["rgb.png", "rgb.webp", "rgb.gif", "rgb.bmp"] {
        let found = decode_at(&read(name), LIMITS, scale(1)).unwrap();
        assert_eq!(found.pixels, decode(&read(name), LIMITS).unwrap(), "{name}");
    }
    assert_eq!(jpeg_size(&read("rgb.png"), LIMITS), Ok(None));
}

#[test]
fn a_scale_is_no_way_around_the_limit_and_no_image_stays_none() {
    let jpeg = read("rgb.jpg");
    let pixels = u64::from(decode(&jpeg, LIMITS).unwrap().width() * decode(&jpeg, LIMITS).unwrap().height());
    let limits = ImageLimits::with_max_pixels(pixels - 1);
    for outcome in [jpeg_size(&jpeg, limits).map(drop), decode_at(&jpeg, limits, scale(1)).map(drop)] {
        assert!(matches!(outcome, Err(DecodeError::TooLarge { .. })), "{outcome:?}");
    }
    assert_eq!(jpeg_size(b"", LIMITS), Err(DecodeError::Empty));
    assert_eq!(jpeg_size(b"hello, world", LIMITS), Err(DecodeError::NotAnImage));
    assert!(matches!(jpeg_size(&jpeg[..8], LIMITS), Err(DecodeError::Broken { .. })));
}
