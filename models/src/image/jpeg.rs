//! Decodes JPEGs with libjpeg-turbo's code: bit for bit the pixels that Pillow gives to the reference
//! implementations. Other decoders round the chroma upsampling and the cosine transform differently.

use std::io;

use ::image::RgbImage;
use memchr::memmem;
use mozjpeg::{ColorSpace, Decompress};

use crate::image::decoded::Scale;

/// The marker that ends a JPEG file and the one that begins each of its scans; neither can occur inside
/// compressed data.
const END: [u8; 2] = [0xff, 0xd9];
const SCAN: [u8; 2] = [0xff, 0xda];
/// The most scans that are accepted. A progressive file has about ten, and each costs a pass over the whole
/// image, however little it holds: a file of some megabytes with a hundred thousand empty scans would take
/// minutes.
const SCANS_MAX: usize = 128;

/// A reason why [`rgb`] returned no pixels.
#[derive(Debug)]
pub(crate) enum JpegError {
    /// The file has to be judged by another decoder: it is truncated, or has CMYK colours.
    Unsuited,
    /// The file is broken, with the reason.
    Broken(String),
}

impl From<io::Error> for JpegError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Decodes a JPEG whose declared size has been checked, and leaves its orientation as it is. Below full size,
/// the cosine transform yields the given number of eighths of each side, each pixel near the mean of those it
/// stands for.
///
/// Damaged data gives damaged pixels, as with Pillow. Fatal errors unwind with a `String` as their payload,
/// which the caller has to catch.
pub(crate) fn rgb(bytes: &[u8], scale: Scale) -> Result<RgbImage, JpegError> {
    let scans = memmem::find_iter(bytes, &SCAN).count();
    if scans > SCANS_MAX {
        return Err(JpegError::Broken(format!("it has {scans} scans, more than the limit of {SCANS_MAX}")));
    }
    // libjpeg would fill missing data with grey.
    let last_scan = memmem::rfind(bytes, &SCAN).unwrap_or(0);
    if memmem::find(&bytes[last_scan..], &END).is_none() {
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
