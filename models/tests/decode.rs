//! Every kind of picture becomes the RGB that Pillow makes of it; everything else a clear error.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::path::{Path, PathBuf};

use concord_models::{DecodeError, decode};

const LIMIT: u64 = 1_000_000;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

fn read(name: &str) -> Vec<u8> {
    fs::read(fixtures().join(name)).unwrap()
}

#[test]
fn pictures_of_every_kind_become_what_pillow_makes_of_them() {
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
        // CMYK is not for libjpeg here, and another decoder may round the inverse cosine transform otherwise.
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
        }
        let mut damaged = bytes.clone();
        for position in 0..bytes.len() {
            damaged[position] ^= 0x5a;
            let _outcome = decode(&damaged, LIMIT);
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
    // A PNG header of 50,000 × 50,000 pixels and nothing else: 7.5 GB if it were believed.
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

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}
