//! Tests that every kind of image decodes to the same RGB as with Pillow, and that everything else is a clear
//! error.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::path::{Path, PathBuf};

use concord_models::{DecodeError, RgbImage, Scale, decode, decode_at, jpeg_size};

const LIMIT: u64 = 1_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

#[test]
fn images_of_every_kind_decode_as_with_pillow() {
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !name.ends_with(".rgb.png") && !name.ends_with(".py"));
    assert!(names.len() >= 22, "found only {names:?}");
    for name in names {
        let found = decode(&read(&name), LIMIT).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = decode(&read(&format!("{name}.rgb.png")), LIMIT).unwrap();
        assert_eq!(found.dimensions(), expected.dimensions(), "{name}");
        let steps = found.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // CMYK is not decoded by libjpeg here, and the other decoder may round the inverse cosine transform
        // otherwise.
        let allowed = if name.contains("cmyk") { 3 } else { 0 };
        assert!(steps <= allowed, "{name}: differs by {steps} of 255, allowed {allowed}");
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
        assert_eq!(decode(bytes, LIMIT).unwrap_err(), expected);
    }
}

#[test]
fn a_truncated_or_damaged_image_is_broken_at_every_length_and_never_panics() {
    for name in ["rgb.png", "rgb.jpg", "rgb.gif", "rgb.webp", "rgb.bmp", "orientation_6.jpg"] {
        let bytes = read(name);
        for length in 1..bytes.len() {
            let _outcome = decode(&bytes[..length], LIMIT);
            let _outcome = decode_at(&bytes[..length], LIMIT, scale(3));
        }
        let mut damaged = bytes.clone();
        for position in 0..bytes.len() {
            damaged[position] ^= 0x5a;
            let _outcome = decode(&damaged, LIMIT);
            let _outcome = decode_at(&damaged, LIMIT, scale(3));
            damaged[position] ^= 0x5a;
        }
    }
    let png = read("rgb.png");
    let error = decode(&png[..png.len() / 2], LIMIT).unwrap_err();
    assert!(matches!(error, DecodeError::Broken { .. }), "{error}");
    assert!(error.to_string().starts_with("a broken PNG image"), "{error}");
}

#[test]
fn a_file_on_which_the_decoder_itself_panics_is_a_broken_image() {
    // Found by fuzzing: zune-jpeg 0.5.15 panics in its inverse cosine transform.
    let damaged = fs::read(fixtures().with_file_name("damaged.jpg")).unwrap();
    assert!(matches!(decode(&damaged, LIMIT), Err(DecodeError::Broken { .. })));
}

#[test]
fn a_declared_size_over_the_limit_is_refused_without_decoding() {
    // A PNG header of 50,000 × 50,000 pixels and nothing else, for which a trusting decoder would allocate
    // 7.5 GB.
    let mut png = read("rgb.png")[..33].to_vec();
    png[16..20].copy_from_slice(&50_000_u32.to_be_bytes());
    png[20..24].copy_from_slice(&50_000_u32.to_be_bytes());
    let checksum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    png.extend_from_slice(b"\0\0\0\x01IDAT\0\0\0\0\0");
    let error = decode(&png, 64_000_000).unwrap_err();
    assert_eq!(error, DecodeError::TooLarge { width: 50_000, height: 50_000, limit: 64_000_000 });
    assert!(error.to_string().contains("max_pixels"), "{error}");
}

#[test]
fn the_limit_itself_is_allowed() {
    let pixels = decode(&read("rgb.png"), 16 * 12).unwrap();
    assert_eq!(pixels.dimensions(), (16, 12));
    assert!(decode(&read("rgb.png"), 16 * 12 - 1).is_err());
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
    let whole = decode(&photograph, LIMIT).unwrap();
    for eighths in [1, 2, 3, 4, 8] {
        let small = decode_at(&photograph, LIMIT, scale(eighths)).unwrap();
        let side = |side: u32| (side * eighths).div_ceil(8);
        assert_eq!(small.pixels.dimensions(), (side(whole.width()), side(whole.height())), "{eighths}/8");
        assert_eq!(small.size, [whole.width(), whole.height()], "{eighths}/8");
        if eighths != 3 {
            let distance = distance_from_means(&small.pixels, &whole);
            assert!(distance < 1.0, "{eighths}/8 is {distance:.2} levels from the means");
        }
    }
    assert_eq!(decode_at(&photograph, LIMIT, Scale::WHOLE).unwrap().pixels, whole);
}

#[test]
fn a_scaled_jpeg_is_upright_too_and_its_size_is_known_before() {
    let upright = decode_at(&read("orientation_1.jpg"), LIMIT, scale(4)).unwrap();
    let (width, height) = upright.pixels.dimensions();
    assert_ne!(width, height, "or the test shows nothing");
    for orientation in 1..=8 {
        let bytes = read(&format!("orientation_{orientation}.jpg"));
        let whole = decode(&bytes, LIMIT).unwrap();
        let small = decode_at(&bytes, LIMIT, scale(4)).unwrap();
        let size = [whole.width(), whole.height()];
        assert_eq!(jpeg_size(&bytes, LIMIT).unwrap(), Some(size), "orientation {orientation}");
        assert_eq!(small.size, size, "orientation {orientation}");
        assert_eq!(small.pixels.dimensions(), (size[0].div_ceil(2), size[1].div_ceil(2)));
    }
}

#[test]
fn what_libjpeg_does_not_scale_is_decoded_whole() {
    for name in ["rgb.png", "rgb.webp", "rgb.gif", "rgb.bmp", "cmyk.jpg"] {
        let found = decode_at(&read(name), LIMIT, scale(1)).unwrap();
        assert_eq!(found.pixels, decode(&read(name), LIMIT).unwrap(), "{name}");
    }
    assert_eq!(jpeg_size(&read("rgb.png"), LIMIT), Ok(None));
}

#[test]
fn a_scale_is_no_way_around_the_limit_and_no_image_stays_none() {
    let jpeg = read("rgb.jpg");
    let pixels = u64::from(decode(&jpeg, LIMIT).unwrap().width() * decode(&jpeg, LIMIT).unwrap().height());
    let limits = [jpeg_size(&jpeg, pixels - 1).map(drop), decode_at(&jpeg, pixels - 1, scale(1)).map(drop)];
    for outcome in limits {
        assert!(matches!(outcome, Err(DecodeError::TooLarge { .. })), "{outcome:?}");
    }
    assert_eq!(jpeg_size(b"", LIMIT), Err(DecodeError::Empty));
    assert_eq!(jpeg_size(b"hello, world", LIMIT), Err(DecodeError::NotAnImage));
    assert!(matches!(jpeg_size(&jpeg[..8], LIMIT), Err(DecodeError::Broken { .. })));
}

/// Returns the checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}
