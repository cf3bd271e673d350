//! The encoding of an image for a server: scaled down, because every pixel is paid for, and without the
//! file's metadata.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use concord_models::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize, thumbnail};

/// The JPEG quality from which on models see no difference.
const QUALITY: u8 = 90;

/// The bytes of a pixel between the passes of `resize`, which shrinks the height first: four fp32 values.
const BYTES_BETWEEN_PASSES: u64 = 16;
/// The most bytes between the passes: enough for photographs of any size. Very wide images would take gigabytes.
const BETWEEN_PASSES_BYTES_MAX: u64 = 128 << 20;

/// An image as it is sent.
#[derive(Debug)]
pub(super) struct EncodedImage {
    /// The JPEG in base64.
    pub(super) base64: String,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// Encodes an image as JPEG in base64, with no side longer than `max_side` pixels.
///
/// # Errors
/// When the encoder fails.
pub(super) fn jpeg_base64(image: &RgbImage, max_side: u32) -> Result<EncodedImage, String> {
    let longer = image.width().max(image.height());
    let mut jpeg = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    let (mut width, mut height) = image.dimensions();
    let encoded = if longer > max_side {
        let scaled = |side: u32| {
            let side = u64::from(side) * u64::from(max_side) / u64::from(longer);
            u32::try_from(side).unwrap_or(max_side).max(1)
        };
        (width, height) = (scaled(width), scaled(height));
        // Averages all pixels where it shrinks, as the models' own preprocessing does.
        let between = u64::from(image.width()) * u64::from(height) * BYTES_BETWEEN_PASSES;
        if between > BETWEEN_PASSES_BYTES_MAX {
            // In one pass, without values in between.
            thumbnail(image, width, height).write_with_encoder(encoder)
        } else {
            resize(image, width, height, FilterType::Triangle).write_with_encoder(encoder)
        }
    } else {
        image.write_with_encoder(encoder)
    };
    encoded.map_err(|error| error.to_string())?;
    Ok(EncodedImage { base64: STANDARD.encode(&jpeg), width, height })
}

#[cfg(test)]
mod tests {
    use concord_models::ImageLimits;

    use super::*;

    #[test]
    fn the_longer_side_is_scaled_to_fit_and_small_images_are_not() {
        for ((width, height), expected) in [
            ((3000, 1000), (768, 256)),
            ((10, 4000), (1, 768)),
            ((64, 32), (64, 32)),
            ((12_000_000, 1), (768, 1)),
        ] {
            let image = jpeg_base64(&RgbImage::new(width, height), 768).unwrap();
            let sent = STANDARD.decode(&image.base64).unwrap();
            assert_eq!(concord_models::decode(&sent, ImageLimits::default()).unwrap().dimensions(), expected);
            assert_eq!((image.width, image.height), expected);
        }
    }
}
