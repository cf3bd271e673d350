//! Decodes BMPs.

use std::io::Cursor;

use ::image::codecs::bmp::BmpDecoder;
use ::image::{ColorType, ImageDecoder, ImageError, RgbImage};

use crate::image::alpha::drop_alpha;
use crate::image::decoded::DecodedImage;
use crate::image::error::DecodeError;
use crate::image::limits::{Bounds, pixel_count};

/// The position of the second header, which begins with its own size, and the size of its oldest form.
const HEADER_AT: usize = 14;
const OLDEST_HEADER_BYTES: u32 = 12;
/// The largest side that the decoder takes.
const SIDE_MAX: u32 = 0xffff;
/// The size of the decoder: a palette, and a row of indices of at most one byte.
const DECODER_BYTES: u64 = 128 << 10;

/// Returns the width and height, from the header alone.
pub(super) fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let (length, rest) = bytes.get(HEADER_AT..)?.split_first_chunk::<4>()?;
    let size = if u32::from_le_bytes(*length) == OLDEST_HEADER_BYTES {
        let ([low, high, left, right], _) = rest.split_first_chunk::<4>()?;
        [[*low, *high], [*left, *right]].map(|side| u32::from(u16::from_le_bytes(side)))
    } else {
        let (width, rest) = rest.split_first_chunk::<4>()?;
        let (height, _) = rest.split_first_chunk::<4>()?;
        // The rows of a negative height run down.
        [u32::try_from(i32::from_le_bytes(*width)).ok()?, i32::from_le_bytes(*height).unsigned_abs()]
    };
    size.iter().all(|side| (1..=SIDE_MAX).contains(side)).then_some(size)
}

/// Decodes an image.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds<'_>) -> Result<DecodedImage, DecodeError> {
    let size = declared_size(bytes).ok_or_else(|| broken("its header is not valid"))?;
    bounds.check_size(size)?;
    let decoder = BmpDecoder::new(Cursor::new(bytes))?;
    if <[u32; 2]>::from(decoder.dimensions()) != size {
        return Err(broken("it has two sizes"));
    }
    let has_alpha = decoder.color_type() == ColorType::Rgba8;
    bounds.check_scratch(DECODER_BYTES + if has_alpha { pixel_count(size) } else { 0 })?;
    bounds.check_wanted()?;
    let length = usize::try_from(decoder.total_bytes()).map_err(|_| broken("its size is not valid"))?;
    let mut pixels = vec![0; length];
    decoder.read_image(&mut pixels)?;
    if has_alpha {
        drop_alpha(&mut pixels);
    }
    let [width, height] = size;
    let image = RgbImage::from_raw(width, height, pixels).ok_or_else(|| broken("rows are missing"))?;
    Ok(image.into())
}

impl From<ImageError> for DecodeError {
    fn from(error: ImageError) -> Self {
        broken(error.to_string())
    }
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::Broken { format: "BMP", message: message.into() }
}
