//! Decodes JPEGs with libjpeg-turbo's code: bit for bit the pixels that Pillow gives to the reference
//! implementations. Other decoders round the chroma upsampling and the cosine transform differently.

mod markers;

use std::io;

use ::image::RgbImage;
use ::image::metadata::Orientation;
use mozjpeg::{ColorSpace, Decompress};

use crate::image::decoded::{DecodedImage, Scale};
use crate::image::error::DecodeError;
use crate::image::limits::Bounds;
use crate::image::orientation::{self, UprightRows};
use markers::{Fault, Frame, Header, Layout};

pub(super) use markers::declared_size;

/// The most scans that are accepted. A progressive file has about ten, and each costs a pass over the whole
/// image, however little it holds: a file of some megabytes with a hundred thousand empty scans would take
/// minutes.
const SCANS_MAX: usize = 128;
/// The rows that are decoded at once. More do not fit into the second-level cache at twelve megapixels.
const ROWS_AT_ONCE: usize = 16;
/// The samples on a side of a block, and the bytes of its coefficients (`JBLOCK` in jpeglib.h: 64 of 16
/// bits).
const BLOCK_SIDE: u64 = 8;
const BLOCK_BYTES: u64 = 128;
/// The rows of each component that libjpeg holds at most: two rows of blocks with a sampling factor of four.
/// `jinit_d_main_controller` (jdmainct.c) and `jinit_upsampler` (jdsample.c) allocate fewer.
const COMPONENT_ROWS: u64 = 64;
/// The size of libjpeg's tables and pools.
const TABLES_BYTES: u64 = 256 << 10;

impl From<Fault> for DecodeError {
    fn from(fault: Fault) -> Self {
        broken(fault.to_string())
    }
}

/// Returns the upright width and height. Reads nothing but the header.
pub(super) fn upright_size(bytes: &[u8], bounds: &Bounds<'_>) -> Result<[u32; 2], DecodeError> {
    let header = Header::read(bytes)?;
    bounds.check_size(header.frame.size)?;
    Ok(orientation::upright(header.frame.size, orientation::of_exif(header.exif)))
}

/// Decodes the first image of a file, upright. Below full size, the cosine transform yields the given number
/// of eighths of each side, each pixel near the mean of those it stands for.
///
/// A file that ends before the image does is broken. Damaged data gives damaged pixels, as with Pillow, and
/// whatever stands behind the image is ignored. Fatal errors unwind with a `String` as their payload, which
/// the caller has to catch.
pub(super) fn decode(bytes: &[u8], scale: Scale, bounds: &Bounds<'_>) -> Result<DecodedImage, DecodeError> {
    let layout = Layout::read(bytes)?;
    let Header { frame, exif } = layout.header;
    bounds.check_size(frame.size)?;
    if layout.scans > SCANS_MAX {
        return Err(broken(format!("it has {} scans, more than the limit of {SCANS_MAX}", layout.scans)));
    }
    bounds.check_scratch(scratch_bytes(&layout))?;
    let orientation = orientation::of_exif(exif);
    let size = orientation::upright(frame.size, orientation);
    let pixels = pixels(&bytes[..layout.end], scale, orientation, bounds)?;
    Ok(DecodedImage { pixels, size })
}

/// Returns the bytes that decoding takes beside the pixels.
///
/// A file of several scans is read as a whole before the first row appears: `jinit_d_coef_controller`
/// (jdcoefct.c) allocates all coefficients where `initial_setup` (jdinput.c) finds a progressive file, or a
/// first scan without all components. Of other files, only some rows are held.
fn scratch_bytes(layout: &Layout<'_>) -> u64 {
    let frame = layout.header.frame;
    let components = frame.components() as u64;
    let [width, _] = frame.size.map(u64::from);
    let widest = width.next_multiple_of(4 * BLOCK_SIDE);
    // Three samples a pixel for RGB, and four for CMYK.
    let rows = widest * (components * COMPONENT_ROWS + (3 + 4) * ROWS_AT_ONCE as u64);
    let is_read_as_a_whole = frame.is_progressive || layout.first_scan_components < frame.components();
    TABLES_BYTES + rows + if is_read_as_a_whole { coefficient_bytes(frame) } else { 0 }
}

/// Returns the bytes of all coefficients, with each component padded to whole blocks and those to its
/// sampling factors.
fn coefficient_bytes(frame: Frame<'_>) -> u64 {
    let [across_max, down_max] = frame.sampling().fold([1, 1], |[across_max, down_max], [across, down]| {
        [across_max.max(u64::from(across)), down_max.max(u64::from(down))]
    });
    let [width, height] = frame.size.map(u64::from);
    let blocks = |side: u64, factor: u64, factor_max: u64| {
        (side * factor).div_ceil(factor_max * BLOCK_SIDE).next_multiple_of(factor)
    };
    let component = |[across, down]: [u8; 2]| {
        blocks(width, across.into(), across_max) * blocks(height, down.into(), down_max)
    };
    frame.sampling().map(component).sum::<u64>() * BLOCK_BYTES
}

fn pixels(
    bytes: &[u8],
    scale: Scale,
    orientation: Orientation,
    bounds: &Bounds<'_>,
) -> Result<RgbImage, DecodeError> {
    let mut decoder = Decompress::new_mem(bytes).map_err(|error| unreadable(&error))?;
    let is_cmyk = matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK);
    decoder.scale(scale.eighths());
    let space = if is_cmyk { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
    let mut started = decoder.to_colorspace(space).map_err(|error| unreadable(&error))?;
    let (width, height) = (started.width(), started.height());
    let side = |length: usize| u32::try_from(length).map_err(|_| broken("its size is not valid"));
    let mut upright = UprightRows::new([side(width)?, side(height)?], orientation);
    let row_bytes = width * if is_cmyk { 4 } else { 3 };
    let mut buffer = vec![0; row_bytes * ROWS_AT_ONCE.min(height)];
    let mut rgb = Vec::new();
    for start in (0..height).step_by(ROWS_AT_ONCE) {
        bounds.check_wanted()?;
        let rows = &mut buffer[..row_bytes * ROWS_AT_ONCE.min(height - start)];
        let rows = started.read_scanlines_into(rows).map_err(|error| unreadable(&error))?;
        if is_cmyk {
            multiply_out(rows, &mut rgb);
            upright.push(&rgb);
        } else {
            upright.push(rows);
        }
    }
    // Reads on to the end marker, and finds data that the rows were made up without: libjpeg fills what it cannot
    // read with grey, and only warns.
    started.finish().map_err(|error| unreadable(&error))?;
    upright.finish().ok_or_else(|| broken("rows are missing"))
}

/// Converts CMYK samples, which Adobe's programs store inverted, as Pillow's `convert("RGB")` does:
/// `cmyk2rgb` in Convert.c.
fn multiply_out(cmyk: &[u8], rgb: &mut Vec<u8>) {
    rgb.clear();
    let (pixels, _) = cmyk.as_chunks::<4>();
    rgb.extend(pixels.iter().flat_map(|&[cyan, magenta, yellow, black]| {
        [cyan, magenta, yellow].map(|ink| {
            let product = u32::from(255 - ink) * u32::from(black) + 128;
            // The rounded quotient by 255, which is at most `black`.
            black.saturating_sub((((product >> 8) + product) >> 8) as u8)
        })
    }));
}

fn unreadable(error: &io::Error) -> DecodeError {
    broken(error.to_string())
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::Broken { format: "JPEG", message: message.into() }
}
