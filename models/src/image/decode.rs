//! Decodes encoded bytes to an upright 8-bit RGB image, with the pixels that Pillow's `convert("RGB")` gives.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::metadata::Orientation;
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use crate::image::decoded::{DecodedImage, Scale};
use crate::image::jpeg::{self, JpegError};

/// A reason why bytes could not be decoded as an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are no bytes.
    #[error("the image is empty")]
    Empty,
    /// The bytes do not begin with the signature of any supported format.
    #[error("not an image: expected one of {FORMAT_NAMES}")]
    NotAnImage,
    /// The image declares more pixels than the limit allows; nothing of it was decoded.
    #[error("the image is {width} × {height} pixels, more than the limit of {limit} pixels (max_pixels)")]
    TooLarge {
        /// Declared width in pixels.
        width: u32,
        /// Declared height in pixels.
        height: u32,
        /// The limit, in pixels.
        limit: u64,
    },
    /// The bytes begin as an image, but its data is broken.
    #[error("a broken {format} image: {message}")]
    Broken {
        /// The name of the format, for instance `PNG`.
        format: String,
        /// The decoder's message.
        message: String,
    },
}

/// The memory limit for each pixel: four 16-bit samples, the most that any of the formats has, twice, because
/// decoders of animations hold two frames.
const BYTES_PER_PIXEL_MAX: u64 = 2 * 8;
/// The memory limit for colour profiles, EXIF and the like: a compressed block that unpacks to more is
/// refused.
const METADATA_BYTES_MAX: u64 = 64 << 20;
/// The supported formats, as the error message lists them.
const FORMAT_NAMES: &str = "JPEG, PNG, WebP, GIF, BMP";
const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// Decodes an image of at most `max_pixels` pixels, turns it upright by its EXIF orientation and reduces it
/// to 8-bit RGB: 16-bit samples are cut to their high byte, grey is copied to three channels, alpha is
/// dropped, palettes are looked up, and CMYK is multiplied out. An animation yields its first frame.
///
/// # Errors
/// [`DecodeError`]; a declared size over the limit is refused before anything of that size is allocated.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, DecodeError> {
    decode_at(bytes, max_pixels, Scale::WHOLE).map(|image| image.pixels)
}

/// Decodes a JPEG at `scale`, and any other image, or a JPEG that libjpeg does not take, at its full size.
///
/// # Errors
/// Returns the errors of [`decode`]; the limit applies to the full-size image.
pub fn decode_at(bytes: &[u8], max_pixels: u64, scale: Scale) -> Result<DecodedImage, DecodeError> {
    let format = format_of(bytes)?;
    contained(format, || decode_format(bytes, format, max_pixels, scale))
}

/// Returns the upright width and height of a JPEG of at most `max_pixels` pixels, or `None` for any other
/// format, which can only be decoded at full size. Reads nothing but the header.
///
/// # Errors
/// Returns the errors of [`decode`].
pub fn jpeg_size(bytes: &[u8], max_pixels: u64) -> Result<Option<[u32; 2]>, DecodeError> {
    let format = format_of(bytes)?;
    if format != ImageFormat::Jpeg {
        return Ok(None);
    }
    contained(format, || Opened::new(bytes, format, max_pixels).map(|opened| Some(opened.upright_size())))
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    let format = ::image::guess_format(bytes).ok().filter(|format| FORMATS.contains(format));
    format.ok_or(DecodeError::NotAnImage)
}

/// Turns a panic of a decoder into [`DecodeError`]: decoders have panicked on damaged files before, and a
/// client's bad file must not look like a bug of the server.
fn contained<T>(
    format: ImageFormat,
    work: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        // Fatal errors of libjpeg arrive as panics too.
        let message =
            panic.downcast::<String>().map_or_else(|_| "it cannot be decoded".to_owned(), |said| *said);
        Err(DecodeError::Broken { format: format_name(format), message })
    })
}

/// An image whose header has been read and whose declared size is allowed.
struct Opened<'bytes> {
    decoder: Box<dyn ImageDecoder + 'bytes>,
    orientation: Orientation,
}

impl<'bytes> Opened<'bytes> {
    fn new(bytes: &'bytes [u8], format: ImageFormat, max_pixels: u64) -> Result<Self, DecodeError> {
        let reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut decoder = reader.into_decoder().map_err(|error| broken(format, &error))?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(DecodeError::TooLarge { width, height, limit: max_pixels });
        }
        let mut limits = Limits::no_limits();
        limits.max_alloc =
            Some(max_pixels.saturating_mul(BYTES_PER_PIXEL_MAX).saturating_add(METADATA_BYTES_MAX));
        decoder.set_limits(limits).map_err(|error| broken(format, &error))?;
        // A broken EXIF block does not affect the pixels.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok(Self { decoder: Box::new(decoder), orientation })
    }

    fn upright_size(&self) -> [u32; 2] {
        let (width, height) = self.decoder.dimensions();
        match self.orientation {
            Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH => [height, width],
            _ => [width, height],
        }
    }
}

fn decode_format(
    bytes: &[u8],
    format: ImageFormat,
    max_pixels: u64,
    scale: Scale,
) -> Result<DecodedImage, DecodeError> {
    let opened = Opened::new(bytes, format, max_pixels)?;
    let (size, orientation) = (opened.upright_size(), opened.orientation);
    let by_libjpeg =
        if format == ImageFormat::Jpeg { jpeg::rgb(bytes, scale) } else { Err(JpegError::Unsuited) };
    let mut image = match by_libjpeg {
        Ok(rgb) => DynamicImage::ImageRgb8(rgb),
        Err(JpegError::Unsuited) => {
            DynamicImage::from_decoder(opened.decoder).map_err(|error| broken(format, &error))?
        }
        Err(JpegError::Broken(message)) => {
            return Err(DecodeError::Broken { format: format_name(format), message });
        }
    };
    image.apply_orientation(orientation);
    Ok(DecodedImage { pixels: to_rgb8(image), size })
}

fn broken(format: ImageFormat, error: &ImageError) -> DecodeError {
    DecodeError::Broken { format: format_name(format), message: error.to_string() }
}

fn format_name(format: ImageFormat) -> String {
    format!("{format:?}").to_uppercase()
}

/// Reduces an image to 8-bit RGB as Pillow does; `DynamicImage::to_rgb8` differs, because it rounds 16-bit
/// samples and converts grey ones through floats.
fn to_rgb8(image: DynamicImage) -> RgbImage {
    let size = (image.width(), image.height());
    let high = |sample: u16| sample.to_be_bytes()[0];
    match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        DynamicImage::ImageLuma8(grey) => three_channels(size, grey.as_raw(), 1, |sample| sample),
        DynamicImage::ImageLumaA8(grey) => three_channels(size, grey.as_raw(), 2, |sample| sample),
        DynamicImage::ImageRgba8(colour) => three_channels(size, colour.as_raw(), 4, |sample| sample),
        DynamicImage::ImageLuma16(grey) => three_channels(size, grey.as_raw(), 1, high),
        DynamicImage::ImageLumaA16(grey) => three_channels(size, grey.as_raw(), 2, high),
        DynamicImage::ImageRgb16(colour) => three_channels(size, colour.as_raw(), 3, high),
        DynamicImage::ImageRgba16(colour) => three_channels(size, colour.as_raw(), 4, high),
        other => other.into_rgb8(),
    }
}

fn three_channels<T: Copy>(
    (width, height): (u32, u32),
    samples: &[T],
    channels: usize,
    eight_bit: impl Fn(T) -> u8,
) -> RgbImage {
    let pixels = samples.chunks_exact(channels).flat_map(|pixel| match *pixel {
        [red, green, blue, ..] => [red, green, blue].map(&eight_bit),
        [grey, ..] => [eight_bit(grey); 3],
        [] => [0; 3],
    });
    RgbImage::from_raw(width, height, pixels.collect()).unwrap_or_default()
}
