//! Tests that an image is decoded only when all of it is there, and that what stands behind it changes nothing.

use std::iter::repeat_with;

use concord_models::{DecodeError, ImageLimits, declared_size, decode};

use super::{LIMITS, decode_at, names, read, scale};

/// Returns the number of bytes at the end of a file that may be missing, because they hold no pixels.
fn end_bytes(name: &str) -> usize {
    match name.rsplit_once('.').unwrap().1 {
        // The checksums of the data and the chunk IEND.
        "png" => 4 + 4 + 12,
        // The code and the empty block that end the data, and the trailer.
        "gif" => 2 + 1 + 1,
        _ => 0,
    }
}

#[test]
fn an_image_of_any_kind_that_is_cut_off_is_broken_at_every_length() {
    for name in names() {
        let bytes = read(&name);
        let whole = decode(&bytes, LIMITS).unwrap();
        for length in 1..bytes.len() {
            let cut = &bytes[..length];
            for outcome in [decode(cut, LIMITS), decode_at(cut, LIMITS, scale(3)).map(|image| image.pixels)] {
                match outcome {
                    Err(DecodeError::Broken { .. }) => {}
                    Err(DecodeError::NotAnImage) if length < 12 => {}
                    Ok(pixels) if length + end_bytes(&name) >= bytes.len() => {
                        assert_eq!(pixels, whole, "{name}");
                    }
                    outcome => panic!("{name}: {length} of {} bytes: {outcome:?}", bytes.len()),
                }
            }
        }
    }
    let jpeg = read("rgb.jpg");
    let message = decode(&jpeg[..jpeg.len() / 2], LIMITS).unwrap_err().to_string();
    assert!(message.starts_with("a broken JPEG image: it is cut off: "), "{message}");
}

#[test]
fn an_image_with_damaged_bytes_is_decoded_or_broken_and_nothing_panics() {
    for name in names() {
        let mut bytes = read(&name);
        for position in 0..bytes.len() {
            bytes[position] ^= 0x5a;
            let declared = declared_size(&bytes);
            let outcomes = [decode_at(&bytes, LIMITS, scale(8)), decode_at(&bytes, LIMITS, scale(3))];
            for image in outcomes.into_iter().flatten() {
                let [width, height] = declared.unwrap_or_else(|| panic!("{name}: byte {position}"));
                assert!(
                    [[width, height], [height, width]].contains(&image.size),
                    "{name}: byte {position}: {:?}, declared {declared:?}",
                    image.size
                );
            }
            bytes[position] ^= 0x5a;
        }
    }
}

/// Returns bytes without any order.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        // Steele and Vigna 2021, "Computationally easy, spectrally good multipliers" (arXiv 2001.05304).
        state = state.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        (state >> 56) as u8
    };
    repeat_with(&mut next).take(length).collect()
}

#[test]
fn what_stands_behind_an_image_changes_neither_pixels_nor_size() {
    let application_segments = [0xff, 0xe2, 0, 4, 0xff, 0xda].repeat(200);
    let behind = [
        ("zeros", vec![0; 200]),
        ("10 MB of noise, as a video is", noise(10_000_000)),
        ("application segments", application_segments),
        ("another image", read("rgb.jpg")),
        ("a burst of progressive images", read("progressive.jpg").repeat(20)),
        ("an end marker", vec![0xff, 0xd9]),
    ];
    for name in names() {
        let bytes = read(&name);
        let whole = decode_at(&bytes, LIMITS, scale(8)).unwrap();
        for (what, more) in &behind {
            let longer = [&bytes[..], more].concat();
            let found = decode_at(&longer, LIMITS, scale(8))
                .unwrap_or_else(|error| panic!("{name}, {what}: {error}"));
            assert!(found.pixels == whole.pixels && found.size == whole.size, "{name} and {what}");
            assert_eq!(declared_size(&longer), declared_size(&bytes), "{name} and {what}");
        }
    }
}

/// Returns the position of a marker of a JPEG that does not occur elsewhere in it.
fn position_of(jpeg: &[u8], marker: u8) -> usize {
    jpeg.windows(2).position(|pair| pair == [0xff, marker]).unwrap()
}

#[test]
fn a_jpeg_is_read_by_its_segments() {
    for name in ["rgb.jpg", "progressive.jpg", "restart.jpg", "grey.jpg", "cmyk.jpg"] {
        let bytes = read(name);
        let whole = decode(&bytes, LIMITS).unwrap();
        let thumbnail = read("rgb.jpg");
        let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
        let with_thumbnail = [&bytes[..2], &[0xff, 0xe1], &length, &thumbnail, &bytes[2..]].concat();
        assert_eq!(decode(&with_thumbnail, LIMITS).unwrap(), whole, "{name} with a thumbnail");
        let cut_within_it = &with_thumbnail[..thumbnail.len()];
        assert!(matches!(decode(cut_within_it, LIMITS), Err(DecodeError::Broken { .. })), "{name}");
        let spaced =
            [&bytes[..2], &[0xff; 9], &bytes[2..bytes.len() - 2], &[0xff; 9], &[0xff, 0xd9]].concat();
        assert_eq!(decode(&spaced, LIMITS).unwrap(), whole, "{name} with bytes 0xff before its markers");
        for cut in position_of(&bytes, 0xda) + 20..bytes.len() {
            let outcome = decode(&[&bytes[..cut], &bytes].concat(), LIMITS);
            assert!(matches!(outcome, Err(DecodeError::Broken { .. })), "{name}, cut at {cut}, and another");
        }
    }
}

#[test]
fn only_the_scans_of_the_first_image_count() {
    let progressive = read("progressive.jpg");
    let whole = decode(&progressive, LIMITS).unwrap();
    let last = progressive.windows(2).rposition(|pair| pair == [0xff, 0xda]).unwrap();
    let end = progressive.len() - 2;
    let scan = &progressive[last..end];
    let scans = progressive.windows(2).filter(|pair| *pair == [0xff, 0xda]).count();
    let with_scans = |more: usize| [&progressive[..end], &scan.repeat(more), &[0xff, 0xd9]].concat();
    assert!(decode(&with_scans(128 - scans), LIMITS).is_ok());
    let message = decode(&with_scans(129 - scans), LIMITS).unwrap_err().to_string();
    assert!(message.contains("it has 129 scans, more than the limit of 128"), "{message}");
    let followed = [&progressive[..], &with_scans(200)].concat();
    assert_eq!(decode(&followed, LIMITS).unwrap(), whole);
}

#[test]
fn a_file_on_which_libjpeg_gives_up_is_a_broken_image() {
    let mut jpeg = read("rgb.jpg");
    let frame = position_of(&jpeg, 0xc0);
    // The quantisation table of the first component, which is not there.
    jpeg[frame + 12] = 3;
    let message = decode(&jpeg, ImageLimits::default()).unwrap_err().to_string();
    assert!(message.starts_with("a broken JPEG image: libjpeg fatal error: "), "{message}");
}
