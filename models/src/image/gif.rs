//! Decodes the first frame of GIFs row by row, so that no image of another colour type is held beside the
//! pixels.

use std::num::NonZeroU64;

use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, MemoryLimit};
use ::image::RgbImage;

use crate::image::decoded::DecodedImage;
use crate::image::error::DecodeError;
use crate::image::limits::{Bounds, rows_between_looks};

/// The size of the signature, after which the width and height of the screen stand.
const SIGNATURE_BYTES: usize = 6;
/// The size of the decoder: a buffer, and the table of its decompressor.
const DECODER_BYTES: u64 = 256 << 10;
/// The passes over an interlaced frame: their first row, and their distance from row to row.
const INTERLACED: [(usize, usize); 4] = [(0, 8), (4, 8), (2, 4), (1, 2)];
const PLAIN: [(usize, usize); 1] = [(0, 1)];

/// Returns the width and height of the screen, from the header alone.
pub(super) fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    let (sides, _) = bytes.get(SIGNATURE_BYTES..)?.split_first_chunk::<4>()?;
    let [low, high, left, right] = *sides;
    let size = [[low, high], [left, right]].map(|side| u32::from(u16::from_le_bytes(side)));
    (!size.contains(&0)).then_some(size)
}

/// Decodes the first frame. What it leaves of the screen is black.
pub(super) fn decode(bytes: &[u8], bounds: &Bounds<'_>) -> Result<DecodedImage, DecodeError> {
    let size = declared_size(bytes).ok_or_else(|| broken("its header is not valid"))?;
    bounds.check_size(size)?;
    // The decoder keeps metadata that stands before the frame, which it can only refuse beyond a limit.
    let left = bounds.check_scratch(DECODER_BYTES + u64::from(u16::MAX))?;
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.set_memory_limit(MemoryLimit::Bytes(NonZeroU64::new(left).unwrap_or(NonZeroU64::MIN)));
    let mut decoder = options.read_info(bytes)?;
    let frame = decoder.next_frame_info()?;
    let frame = Placement::of(frame.ok_or_else(|| broken("it has no frame"))?);
    let [width, height] = size;
    // Pillow would enlarge the image, beyond the size in its header by which it was admitted.
    if frame.left + frame.width > width as usize || frame.top + frame.height > height as usize {
        return Err(broken("its first frame reaches over its screen"));
    }
    if frame.width == 0 || frame.height == 0 {
        return Err(broken("its first frame is empty"));
    }
    let mut image = RgbImage::new(width, height);
    draw(&mut decoder, &frame, &mut image, bounds)?;
    Ok(image.into())
}

/// The place of a frame on its screen.
struct Placement {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
    is_interlaced: bool,
}

impl Placement {
    fn of(frame: &::gif::Frame<'_>) -> Self {
        Self {
            left: frame.left.into(),
            top: frame.top.into(),
            width: frame.width.into(),
            height: frame.height.into(),
            is_interlaced: frame.interlaced,
        }
    }
}

fn draw(
    decoder: &mut Decoder<&[u8]>,
    frame: &Placement,
    image: &mut RgbImage,
    bounds: &Bounds<'_>,
) -> Result<(), DecodeError> {
    let (colours, _) = decoder.palette()?.as_chunks::<3>();
    let palette: Vec<[u8; 3]> = colours.to_vec();
    let row_bytes = image.width() as usize * 3;
    let mut indices = vec![0; frame.width];
    let between_looks = rows_between_looks(image.width());
    let passes: &[(usize, usize)] = if frame.is_interlaced { &INTERLACED } else { &PLAIN };
    let rows = passes.iter().flat_map(|&(first, step)| (first..frame.height).step_by(step));
    for (count, row) in rows.enumerate() {
        if count % between_looks == 0 {
            bounds.check_wanted()?;
        }
        if !decoder.fill_buffer(&mut indices)? {
            return Err(broken("it is cut off: rows are missing"));
        }
        let line = image.chunks_exact_mut(row_bytes).nth(frame.top + row);
        let (line, _) = line.unwrap_or_default().as_chunks_mut::<3>();
        for (pixel, &index) in line.iter_mut().skip(frame.left).zip(&indices) {
            *pixel = palette.get(usize::from(index)).copied().unwrap_or_default();
        }
    }
    Ok(())
}

impl From<DecodingError> for DecodeError {
    fn from(error: DecodingError) -> Self {
        broken(error.to_string())
    }
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::Broken { format: "GIF", message: message.into() }
}
