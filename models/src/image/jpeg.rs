//! The pixels of a JPEG, by libjpeg-turbo's code: bit for bit those that Pillow gives to the reference
//! implementations, whose chroma upsampling and cosine transform other decoders round differently.

use std::io;

use ::image::RgbImage;
use mozjpeg::{ColorSpace, Decompress};

use crate::image::decoded::Scale;

/// How a JPEG file ends, and how each of its scans begins; neither can occur inside compressed data.
const END: [u8; 2] = [0xff, 0xd9];
const SCAN: [u8; 2] = [0xff, 0xda];
/// A progressive file has about ten scans. Each costs a pass over the whole picture, whatever it holds: a file of
/// some megabytes with a hundred thousand empty ones would take minutes.
const SCANS_MAX: usize = 128;

/// Why [`rgb`] gave no pixels.
#[derive(Debug)]
pub(crate) enum JpegError {
    /// It is of a kind that another decoder has to judge: cut off, or with the colours of a printer.
    Unsuited,
    /// What is wrong with it.
    Broken(String),
}

impl From<io::Error> for JpegError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Decodes a JPEG whose declared size has been checked; the orientation is left as it is. At less than the whole, its
/// cosine transform gives so many eighths of the picture, each pixel near the mean of those that it stands for.
///
/// Damaged data gives damaged pixels, as with Pillow. Fatal errors unwind, with a `String`: the caller contains that.
pub(crate) fn rgb(bytes: &[u8], scale: Scale) -> Result<RgbImage, JpegError> {
    let scans = bytes.windows(2).filter(|pair| **pair == SCAN).count();
    if scans > SCANS_MAX {
        return Err(JpegError::Broken(format!("it has {scans} scans, more than the limit of {SCANS_MAX}")));
    }
    // libjpeg would fill what is missing with grey.
    let last_scan = bytes.windows(2).rposition(|pair| *pair == SCAN).unwrap_or(0);
    if !bytes[last_scan..].windows(2).any(|pair| *pair == END) {
        return Err(JpegError::Unsuited);
    }
    let mut decoder = Decompress::new_mem(bytes)?;
    if matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK) {
        return Err(JpegError::Unsuited);
    }
    decoder.scale(scale.eighths());
    let mut started = decoder.rgb()?;
    let (width, height) = (started.width(), started.height());
    let pixels = started.read_scanlines::<u8>()?;
    let size = |length: usize| u32::try_from(length).map_err(|_| JpegError::Unsuited);
    RgbImage::from_raw(size(width)?, size(height)?, pixels).ok_or(JpegError::Unsuited)
}
