//! Decodes `WebP` images, lossy and lossless.

use std::io::Cursor;

use ::image::RgbImage;
use image_webp::{DecodingError, WebPDecoder};

use crate::image::alpha::drop_alpha;
use crate::image::decoded::DecodedImage;
use crate::image::error::DecodeError;
use crate::image::limits::{Bounds, pixel_count};
use crate::image::orientation;

/// The sizes of the headers of the file and of a chunk.
const FILE_HEADER_BYTES: usize = 12;
const CHUNK_HEADER_BYTES: usize = 8;
/// The size of the header of an animation's frame, which comes before its chunks.
const FRAME_HEADER_BYTES: usize = 16;
/// The largest side that the formats of chunks `VP8 ` and `VP8L` can express, in bits.
const SIDE_MASK: u32 = 0x3fff;
/// The most bytes of an EXIF block that are looked at.
const EXIF_BYTES_MAX: usize = 1 << 20;
/// The size of the decoder's tables and rows.
const DECODER_BYTES: u64 = 256 << 10;
/// The sides of macroblocks, to which planes are padded.
const MACROBLOCK: u32 = 16;

/// Returns the width and height, as stored, from the header of the first chunk alone.
pub(super) fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let chunk = bytes.get(FILE_HEADER_BYTES..)?;
    let (name, rest) = chunk.split_first_chunk::<4>()?;
    let data = rest.get(CHUNK_HEADER_BYTES - 4..)?;
    let size = match (name, data) {
        (b"VP8 ", data) => lossy_size(data)?,
        (b"VP8L", [0x2f, first, second, third, fourth, ..]) => {
            let bits = u32::from_le_bytes([*first, *second, *third, *fourth]);
            [bits, bits >> 14].map(|side| (side & SIDE_MASK) + 1)
        }
        // The size of the canvas.
        (b"VP8X", [_, _, _, _, a, b, c, d, e, f, ..]) => {
            [[*a, *b, *c, 0], [*d, *e, *f, 0]].map(|side| u32::from_le_bytes(side) + 1)
        }
        _ => return None,
    };
    (!size.contains(&0)).then_some(size)
}

/// Returns the width and height in the header of a lossy frame.
fn lossy_size(frame: &[u8]) -> Option<[u32; 2]> {
    let [_, _, _, 0x9d, 0x01, 0x2a, low, high, left, right, ..] = *frame else { return None };
    Some([[low, high], [left, right]].map(|side| u32::from(u16::from_le_bytes(side)) & SIDE_MASK))
}

/// Decodes an image, upright; of an animation, the first frame.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds<'_>) -> Result<DecodedImage, DecodeError> {
    let size = declared_size(bytes).ok_or_else(|| broken("its header is not valid"))?;
    bounds.check_size(size)?;
    let bytes = whole(bytes)?;
    if !lossy_frames_fit(bytes, size) {
        return Err(broken("a frame is larger than the image"));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes))?;
    if <[u32; 2]>::from(decoder.dimensions()) != size {
        return Err(broken("it has two sizes"));
    }
    decoder.set_memory_limit(EXIF_BYTES_MAX);
    // A broken or larger block does not affect the pixels.
    let orientation = orientation::of_exif(decoder.exif_metadata().ok().flatten().as_deref());
    let turn_bytes = orientation::turn_bytes(size, orientation);
    bounds.check_scratch(scratch_bytes(&mut decoder, size, bytes.len() as u64) + turn_bytes)?;
    bounds.check_wanted()?;
    let length = decoder.output_buffer_size().ok_or_else(|| broken("its size is not valid"))?;
    let mut pixels = vec![0; length];
    decoder.read_image(&mut pixels)?;
    if decoder.has_alpha() {
        drop_alpha(&mut pixels);
    }
    let [width, height] = size;
    let image = RgbImage::from_raw(width, height, pixels).ok_or_else(|| broken("rows are missing"))?;
    Ok(DecodedImage {
        pixels: orientation::turn(image, orientation),
        size: orientation::upright(size, orientation),
    })
}

/// Returns the bytes of the file by its header, as libwebp reads it: what stands behind is ignored.
fn whole(bytes: &[u8]) -> Result<&[u8], DecodeError> {
    let (length, _) = bytes.get(4..).and_then(<[u8]>::split_first_chunk::<4>).ok_or_else(cut_off)?;
    let length = u32::from_le_bytes(*length) as usize;
    bytes.get(..length.saturating_add(CHUNK_HEADER_BYTES)).ok_or_else(cut_off)
}

/// Returns `true` unless a lossy frame that may be decoded is larger than the image, as which the decoder would
/// unpack it before it compares the sizes.
fn lossy_frames_fit(bytes: &[u8], size: [u32; 2]) -> bool {
    let fits = |data: &[u8]| {
        lossy_size(data).is_none_or(|frame| frame.iter().zip(size).all(|(&side, most)| side <= most))
    };
    let chunks = || Chunks(bytes.get(FILE_HEADER_BYTES..).unwrap_or_default());
    let of_first_frame = chunks()
        .find(|(name, _)| name == b"ANMF")
        .and_then(|(_, data)| data.get(FRAME_HEADER_BYTES..))
        .unwrap_or_default();
    let still = chunks().filter(|(name, _)| name == b"VP8 ");
    // Behind an alpha channel, the decoder takes a chunk of any name for the frame.
    still.chain(Chunks(of_first_frame)).all(|(_, data)| fits(data))
}

/// The names and data of chunks that follow each other; the last one may be cut off.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = self.0.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = rest.get(..length).unwrap_or(rest);
        // Chunks begin at even positions.
        self.0 = rest.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((*name, data))
    }
}

/// Returns the bytes that decoding takes beside the pixels, by the allocations of the image-webp crate.
///
/// Not counted are the Huffman codes of lossless data, whose number only the data tells.
fn scratch_bytes(decoder: &mut WebPDecoder<Cursor<&[u8]>>, size: [u32; 2], encoded: u64) -> u64 {
    // Quarters of a byte for each pixel. An alpha channel is a fourth byte in the decoder's buffer, which
    // becomes that of the pixels.
    let alpha = if decoder.has_alpha() { 4 } else { 0 };
    // The blocks of predictors, of colours and of Huffman codes, at their smallest.
    let lossless = 3;
    let quarters = match (decoder.is_animated(), decoder.is_lossy()) {
        // A canvas and a frame of four bytes.
        (true, _) => 4 * (4 + 4) + lossless,
        // Where there is no alpha channel, a frame of four bytes.
        (false, false) => {
            if alpha > 0 {
                lossless
            } else {
                4 * 4 + lossless
            }
        }
        // Luma, and chroma of half the size. Alpha is unpacked as lossless pixels of four bytes, then copied.
        (false, true) => 4 + 2 + if alpha > 0 { 4 * (4 + 1) + lossless } else { 0 },
    };
    let padded = size.map(|side| side.next_multiple_of(MACROBLOCK));
    // Lossy data is copied twice.
    pixel_count(padded) * (quarters + alpha) / 4 + 2 * encoded + DECODER_BYTES
}

fn cut_off() -> DecodeError {
    broken("it is cut off")
}

impl From<DecodingError> for DecodeError {
    fn from(error: DecodingError) -> Self {
        broken(error.to_string())
    }
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::Broken { format: "WEBP", message: message.into() }
}
