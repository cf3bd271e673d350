//! Decodes PNGs row by row, so that no image of another colour type is held beside the pixels.

use std::io::Cursor;

use ::image::RgbImage;
use ::image::metadata::Orientation;
use ::png::{Decoder, DecodingError, InterlaceInfo, Limits, Reader, Transformations, expand_interlaced_row};

use crate::image::decoded::DecodedImage;
use crate::image::error::DecodeError;
use crate::image::limits::{BYTES_PER_PIXEL, Bounds, rows_between_looks};
use crate::image::orientation::{self, UprightRows};

/// The signature, and the beginning of the header that follows it: its length and name.
const HEADER_START: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR";
/// The bits of a sample, the colour type and the interlacing, which follow the width and height.
const DEPTH_AT: usize = 24;
const COLOUR_TYPE_AT: usize = 25;
/// The most samples that the decoder makes of a pixel: RGBA.
const CHANNELS_MAX: u64 = 4;
/// The size of the decoder without its rows: the tables of its decompressor, and the buffer of rows at its
/// smallest (128 KiB, and 32 KiB that compressed data may refer to), which grows by doubling.
const DECODER_BYTES: u64 = 1 << 20;
/// What the decoder takes from its limit for the chunk of a palette.
const PALETTE_BYTES: u64 = 4 << 10;
/// The rows in that buffer at most (`UnfilteringBuffer` in the png crate shifts it back after four rows), and
/// the growth by doubling, during which the old buffer is there too.
const BUFFERED_ROWS: u64 = 6;
const GROWTH: u64 = 3;

/// Returns the width and height, as stored, from the header alone.
pub(super) fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let (width, rest) = bytes.strip_prefix(HEADER_START)?.split_first_chunk::<4>()?;
    let (height, _) = rest.split_first_chunk::<4>()?;
    let size = [width, height].map(|side| u32::from_be_bytes(*side));
    (!size.contains(&0)).then_some(size)
}

/// Decodes an image, upright; of an animation, the one that is shown where animations are not.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds<'_>) -> Result<DecodedImage, DecodeError> {
    let size = declared_size(bytes).ok_or_else(|| broken("its header is not valid"))?;
    bounds.check_size(size)?;
    let scratch = scratch_bytes(bytes, size);
    let left = bounds.check_scratch(scratch)?;
    let mut reader = open(bytes, size, left)?;
    let orientation = orientation::of_exif(reader.info().exif_metadata.as_deref());
    let image = if reader.info().interlaced {
        bounds.check_scratch(scratch + orientation::turn_bytes(size, orientation))?;
        orientation::turn(interlaced(&mut reader, size, bounds)?, orientation)
    } else {
        plain(&mut reader, size, orientation, bounds)?
    };
    Ok(DecodedImage { pixels: image, size: orientation::upright(size, orientation) })
}

/// Returns the bytes that decoding takes beside the pixels.
fn scratch_bytes(bytes: &[u8], [width, height]: [u32; 2]) -> u64 {
    let byte = |at: usize| bytes.get(at).copied().map_or(0, u64::from);
    let samples = match byte(COLOUR_TYPE_AT) {
        2 => 3,
        4 => 2,
        6 => 4,
        // Grey, or an index.
        _ => 1,
    };
    let row = (u64::from(width) * samples * byte(DEPTH_AT)).div_ceil(8) + 1;
    let buffered = row * BUFFERED_ROWS.min(u64::from(height)) * GROWTH;
    // A row as the decoder gives it, and as RGB.
    let converted = u64::from(width) * (CHANNELS_MAX + BYTES_PER_PIXEL);
    DECODER_BYTES + buffered + converted
}

/// Reads the chunks before the pixels. Of the metadata only EXIF is kept, which is not compressed; colour
/// profiles and texts would be unpacked to any size.
fn open(bytes: &[u8], size: [u32; 2], left: u64) -> Result<Reader<Cursor<&[u8]>>, DecodeError> {
    let row = u64::from(size[0]) * CHANNELS_MAX;
    let limit = usize::try_from(left.saturating_add(row + PALETTE_BYTES)).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: limit });
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    // Samples of 8 bits: of 16, the high byte is kept.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    Ok(decoder.read_info()?)
}

fn plain(
    reader: &mut Reader<Cursor<&[u8]>>,
    size: [u32; 2],
    orientation: Orientation,
    bounds: &Bounds<'_>,
) -> Result<RgbImage, DecodeError> {
    let mut upright = UprightRows::new(size, orientation);
    let mut rgb = Vec::new();
    each_row(reader, size[0], bounds, |row, channels, _| {
        to_rgb8(row, channels, &mut rgb);
        upright.push(&rgb);
    })?;
    upright.finish().ok_or_else(|| broken("rows are missing"))
}

fn interlaced(
    reader: &mut Reader<Cursor<&[u8]>>,
    [width, height]: [u32; 2],
    bounds: &Bounds<'_>,
) -> Result<RgbImage, DecodeError> {
    let mut image = RgbImage::new(width, height);
    let stride = width as usize * BYTES_PER_PIXEL as usize;
    let mut rgb = Vec::new();
    each_row(reader, width, bounds, |row, channels, interlace| {
        to_rgb8(row, channels, &mut rgb);
        if let InterlaceInfo::Adam7(pass) = interlace {
            expand_interlaced_row(&mut image, stride, &rgb, pass, 8 * BYTES_PER_PIXEL as u8);
        }
    })?;
    Ok(image)
}

/// Calls `take` with each row, its number of samples a pixel, and its place.
fn each_row(
    reader: &mut Reader<Cursor<&[u8]>>,
    width: u32,
    bounds: &Bounds<'_>,
    mut take: impl FnMut(&[u8], usize, &InterlaceInfo),
) -> Result<(), DecodeError> {
    let (colour_type, _) = reader.output_color_type();
    let channels = colour_type.samples();
    let between_looks = rows_between_looks(width);
    let mut count = 0;
    loop {
        if count % between_looks == 0 {
            bounds.check_wanted()?;
        }
        count += 1;
        let Some(row) = reader.next_interlaced_row()? else { return Ok(()) };
        take(row.data(), channels, row.interlace());
    }
}

/// Converts a row: grey is copied to three channels, and alpha is dropped.
fn to_rgb8(row: &[u8], channels: usize, rgb: &mut Vec<u8>) {
    rgb.clear();
    match channels {
        3 => rgb.extend_from_slice(row),
        4 => rgb.extend(row.as_chunks::<4>().0.iter().flat_map(|&[red, green, blue, _]| [red, green, blue])),
        _ => rgb.extend(row.chunks_exact(channels).flat_map(|pixel| [pixel[0]; 3])),
    }
}

impl From<DecodingError> for DecodeError {
    fn from(error: DecodingError) -> Self {
        broken(error.to_string())
    }
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::Broken { format: "PNG", message: message.into() }
}
