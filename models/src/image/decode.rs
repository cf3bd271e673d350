//! Decodes encoded bytes to an upright 8-bit RGB image, with the pixels that Pillow's `convert("RGB")` gives.

use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::{ImageFormat, RgbImage};

use crate::image::decoded::{DecodedImage, Scale};
use crate::image::error::DecodeError;
use crate::image::limits::{Bounds, ImageLimits};
use crate::image::{bmp, gif, jpeg, png, webp};

/// The formats that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
}

impl Format {
    /// Returns the format whose signature the bytes begin with.
    fn of(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Empty);
        }
        match ::image::guess_format(bytes) {
            Ok(ImageFormat::Jpeg) => Ok(Self::Jpeg),
            Ok(ImageFormat::Png) => Ok(Self::Png),
            Ok(ImageFormat::WebP) => Ok(Self::WebP),
            Ok(ImageFormat::Gif) => Ok(Self::Gif),
            Ok(ImageFormat::Bmp) => Ok(Self::Bmp),
            _ => Err(DecodeError::NotAnImage),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WEBP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
        }
    }
}

/// Decodes an image within the limits, turns it upright by its EXIF orientation and reduces it to 8-bit RGB:
/// 16-bit samples are cut to their high byte, grey is copied to three channels, alpha is dropped, palettes are
/// looked up, and CMYK is multiplied out. An animation yields its first frame.
///
/// Metadata other than the orientation is not read. What stands behind the image is ignored, so that it changes
/// neither pixels nor errors.
///
/// # Errors
/// [`DecodeError`]; an image over a limit is refused by its header, before anything of its size is allocated.
pub fn decode(bytes: &[u8], limits: ImageLimits) -> Result<RgbImage, DecodeError> {
    decode_at(bytes, limits, Scale::WHOLE, &|| true).map(|image| image.pixels)
}

/// Decodes a JPEG at `scale`, and any other image at its full size, unless `wanted` returns `false`: it is
/// called before the work begins and, where rows are decoded one after the other, again after some of them.
///
/// # Errors
/// Returns the errors of [`decode`], and [`DecodeError::Abandoned`] once the image is not wanted any more. The
/// limits apply to the full-size image.
pub fn decode_at(
    bytes: &[u8],
    limits: ImageLimits,
    scale: Scale,
    wanted: &dyn Fn() -> bool,
) -> Result<DecodedImage, DecodeError> {
    let format = Format::of(bytes)?;
    let bounds = Bounds { limits, wanted };
    contained(format, || match format {
        Format::Jpeg => jpeg::decode(bytes, scale, &bounds),
        Format::Png => png::decode(bytes, &bounds),
        Format::WebP => webp::decode(bytes, &bounds),
        Format::Gif => gif::decode(bytes, &bounds),
        Format::Bmp => bmp::decode(bytes, &bounds),
    })
}

/// Returns the upright width and height of a JPEG within the limits, or `None` for any other format, which can
/// only be decoded at full size. Reads nothing but the header.
///
/// # Errors
/// Returns the errors of [`decode`].
pub fn jpeg_size(bytes: &[u8], limits: ImageLimits) -> Result<Option<[u32; 2]>, DecodeError> {
    match Format::of(bytes)? {
        Format::Jpeg => jpeg::upright_size(bytes, &Bounds { limits, wanted: &|| true }).map(Some),
        _ => Ok(None),
    }
}

/// Returns the width and height that the header declares, as stored: not yet upright. Nothing is decoded and
/// nothing allocated; an image that [`decode`] takes has this size, but one that has a size need not be
/// whole.
pub fn declared_size(bytes: &[u8]) -> Option<[u32; 2]> {
    match Format::of(bytes).ok()? {
        Format::Jpeg => jpeg::declared_size(bytes),
        Format::Png => png::declared_size(bytes),
        Format::WebP => webp::declared_size(bytes),
        Format::Gif => gif::declared_size(bytes),
        Format::Bmp => bmp::declared_size(bytes),
    }
}

/// Turns a panic of a decoder into [`DecodeError`]: decoders have panicked on damaged files before, and a
/// client's bad file must not look like a bug of the server.
fn contained<T>(format: Format, work: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        // Fatal errors of libjpeg arrive as panics too.
        let message =
            panic.downcast::<String>().map_or_else(|_| "it cannot be decoded".to_owned(), |said| *said);
        Err(DecodeError::Broken { format: format.name(), message })
    })
}
