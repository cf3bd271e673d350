//! Tests that an image is refused by its header where decoding it would take too much, and that ordinary ones
//! are not.

use std::borrow::Cow;
use std::cell::Cell;

use concord_models::{DecodeError, ImageLimits, Scale, decode, decode_at};
use png::{BitDepth, ColorType, Encoder, Info};

use super::{LIMITS, names, read};

/// Returns a PNG of zeros.
fn png(width: u32, height: u32, kind: ColorType, depth: BitDepth, profile_bytes: usize) -> Vec<u8> {
    let mut info = Info::with_size(width, height);
    (info.color_type, info.bit_depth) = (kind, depth);
    info.palette = (kind == ColorType::Indexed).then_some(Cow::Borrowed(&[9, 8, 7]));
    info.icc_profile = (profile_bytes > 0).then(|| vec![0; profile_bytes].into());
    let row = info.raw_row_length() - 1;
    let mut bytes = Vec::new();
    let mut encoder = Encoder::with_info(&mut bytes, info).unwrap();
    encoder.set_compression(png::Compression::Fast);
    encoder.add_ztxt_chunk("Comment".to_owned(), "a".repeat(profile_bytes)).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&vec![0; row * height as usize]).unwrap();
    writer.finish().unwrap();
    bytes
}

/// Returns a JPEG of the fixtures whose header declares another size.
fn jpeg(name: &str, width: u16, height: u16) -> Vec<u8> {
    let mut bytes = read(name);
    let frame = bytes.windows(2).position(|pair| [[0xff, 0xc0], [0xff, 0xc2]].contains(&[pair[0], pair[1]]));
    let frame = frame.unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// Returns a GIF of a pixel on a screen of this size.
fn gif(width: u16, height: u16) -> Vec<u8> {
    let screen = [width.to_le_bytes(), height.to_le_bytes()].concat();
    let frame = [0, 0, 0, 0, 1, 0, 1, 0, 0];
    [b"GIF89a", &*screen, &[0x80, 0, 0, 1, 2, 3, 4, 5, 6, 0x2c], &frame, &[2, 2, 0x44, 1, 0, 0x3b]].concat()
}

/// Returns a WebP of the fixtures whose bytes at a position are replaced.
fn webp(name: &str, position: usize, replaced: &[u8]) -> Vec<u8> {
    let mut bytes = read(name);
    bytes[position..position + replaced.len()].copy_from_slice(replaced);
    bytes
}

#[test]
fn a_declared_size_over_the_limit_is_refused_without_decoding() {
    let mut huge = png(8, 8, ColorType::Rgb, BitDepth::Eight, 0);
    huge[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    for (bytes, width, height) in [
        (huge, 50_000, 50_000),
        (gif(60_000, 60_000), 60_000, 60_000),
        (jpeg("rgb.jpg", 9000, 9000), 9000, 9000),
    ] {
        let error = decode(&bytes, ImageLimits::default()).unwrap_err();
        assert_eq!(error, DecodeError::TooLarge { width, height, limit: 64_000_000 });
        assert!(error.to_string().contains("max_pixels"), "{error}");
    }
}

#[test]
fn the_limits_themselves_are_allowed() {
    for name in names() {
        let bytes = read(&name);
        let image = decode(&bytes, LIMITS).unwrap();
        let pixels = u64::from(image.width()) * u64::from(image.height());
        let with = |max_pixels| ImageLimits { max_pixels, ..LIMITS };
        assert!(decode(&bytes, with(pixels)).is_ok(), "{name}");
        assert!(matches!(decode(&bytes, with(pixels - 1)), Err(DecodeError::TooLarge { .. })), "{name}");
        let with = |max_scratch_bytes| ImageLimits { max_scratch_bytes, ..LIMITS };
        let Err(DecodeError::TooCostly { needed, limit: 0 }) = decode(&bytes, with(0)) else {
            panic!("{name}: every decoder takes something");
        };
        assert!(decode(&bytes, with(needed)).is_ok(), "{name}: {needed} bytes");
        let one_less = DecodeError::TooCostly { needed, limit: needed - 1 };
        assert_eq!(decode(&bytes, with(needed - 1)), Err(one_less), "{name}");
    }
}

#[test]
fn work_beside_the_pixels_that_is_over_the_limit_is_refused_by_the_header() {
    // 7999 × 7999 pixels.
    let lossless = ((7998_u32 << 14) | 7998).to_le_bytes();
    let canvas = [0x3e, 0x1f, 0, 0x3e, 0x1f, 0];
    for (what, bytes, bytes_per_pixel) in [
        ("a progressive JPEG", jpeg("progressive.jpg", 7999, 7999), 3),
        ("a progressive CMYK JPEG", jpeg("cmyk_progressive.jpg", 7999, 7999), 8),
        ("a progressive grey JPEG", jpeg("grey_progressive.jpg", 7999, 7999), 2),
        ("a lossless WebP", webp("rgb.webp", 21, &lossless), 4),
        ("an animated WebP", webp("animated.webp", 24, &canvas), 8),
    ] {
        let error = decode(&bytes, ImageLimits::default()).unwrap_err();
        let DecodeError::TooCostly { needed, limit } = error else { panic!("{what}: {error}") };
        assert_eq!(limit, 64 << 20, "{what}");
        let least = 7999 * 7999 * bytes_per_pixel;
        assert!((least..least * 5 / 4 + (8 << 20)).contains(&needed), "{what}: {needed}, at least {least}");
        assert!(error.to_string().contains("max_scratch_bytes"), "{error}");
    }
}

#[test]
fn large_images_of_the_common_formats_are_within_the_default_limits() {
    for (what, bytes, size) in [
        ("a progressive JPEG of 12 megapixels", jpeg("progressive.jpg", 4000, 3000), (4000, 3000)),
        ("a PNG of 36 megapixels", png(6000, 6000, ColorType::Grayscale, BitDepth::Eight, 0), (6000, 6000)),
        ("a GIF of 64 megapixels", gif(8000, 8000), (8000, 8000)),
    ] {
        let image = decode(&bytes, ImageLimits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(image.dimensions(), size, "{what}");
    }
}

#[test]
fn the_memory_beside_a_png_does_not_grow_with_its_height() {
    let limits = ImageLimits { max_pixels: 4_000_000, max_scratch_bytes: 2 << 20 };
    for (kind, depth) in [
        (ColorType::Grayscale, BitDepth::One),
        (ColorType::Grayscale, BitDepth::Sixteen),
        (ColorType::GrayscaleAlpha, BitDepth::Eight),
        (ColorType::Indexed, BitDepth::Four),
        (ColorType::Rgb, BitDepth::Eight),
        (ColorType::Rgba, BitDepth::Eight),
        (ColorType::Rgba, BitDepth::Sixteen),
    ] {
        let image = decode(&png(500, 8000, kind, depth, 0), limits);
        let image = image.unwrap_or_else(|error| panic!("{kind:?}, {depth:?}: {error}"));
        let colour = if kind == ColorType::Indexed { [9, 8, 7] } else { [0; 3] };
        assert!(image.pixels().all(|pixel| pixel.0 == colour), "{kind:?}, {depth:?}");
    }
}

#[test]
fn profiles_and_texts_of_any_size_are_not_unpacked() {
    let limits = ImageLimits { max_pixels: 64, max_scratch_bytes: 2 << 20 };
    let bytes = png(8, 8, ColorType::Rgb, BitDepth::Eight, 50_000_000);
    assert!(bytes.len() < 1_000_000, "{} bytes", bytes.len());
    assert!(decode(&bytes, limits).is_ok());
}

#[test]
fn a_lossy_webp_frame_is_not_larger_than_its_image() {
    let name = "lossy_alpha.webp";
    let frame = read(name).windows(3).position(|bytes| bytes == [0x9d, 0x01, 0x2a]).unwrap() + 3;
    let message = decode(&webp(name, frame, &[0xff, 0x3f, 0xff, 0x3f]), LIMITS).unwrap_err().to_string();
    assert_eq!(message, "a broken WEBP image: a frame is larger than the image");
}

#[test]
fn an_image_that_nobody_wants_any_more_is_given_up() {
    let png = png(1000, 1000, ColorType::Rgb, BitDepth::Eight, 0);
    for (what, bytes, looks) in [
        ("rgb.png", read("rgb.png"), 0),
        ("rgb.gif", read("rgb.gif"), 0),
        ("rgb.webp", read("rgb.webp"), 0),
        ("rgb.bmp", read("rgb.bmp"), 0),
        ("rgb.jpg", read("rgb.jpg"), 0),
        ("rows of a JPEG", jpeg("rgb.jpg", 1000, 1000), 20),
        ("rows of a PNG", png, 4),
    ] {
        let left = Cell::new(looks);
        let wanted = || left.replace(left.get() - 1) > 0;
        let outcome = decode_at(&bytes, LIMITS, Scale::WHOLE, &wanted).map(|image| image.size);
        assert_eq!(outcome, Err(DecodeError::Abandoned), "{what}");
        assert_eq!(left.get(), -1, "{what}: it looked again after it was told to stop");
    }
}
