//! Large JPEGs like those of a camera, made from small photographs.

use concord_models::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};

/// The width and height of twelve megapixels, as phones take them.
pub(crate) const SIDES: [u32; 2] = [4000, 3000];
/// The JPEG quality of cameras.
const QUALITY: u8 = 90;
/// The levels of noise: a photograph that is only enlarged has next to no data for the decoder to read.
const NOISE: u32 = 12;

/// Enlarges a photograph to twelve megapixels, and encodes it as JPEG.
pub(crate) fn twelve_megapixels(photograph: &RgbImage) -> Vec<u8> {
    let [long, short] = SIDES;
    let is_wide = photograph.width() >= photograph.height();
    enlarged(photograph, if is_wide { [long, short] } else { [short, long] })
}

/// Enlarges a photograph to this width and height, adds the noise of a sensor, and encodes it as JPEG.
pub(crate) fn enlarged(photograph: &RgbImage, [width, height]: [u32; 2]) -> Vec<u8> {
    let mut large = resize(photograph, width, height, FilterType::CatmullRom);
    let mut state: u32 = 7;
    for sample in large.iter_mut() {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (state >> 16) % NOISE;
        *sample =
            u8::try_from((u32::from(*sample) + noise).saturating_sub(NOISE / 2).min(255)).unwrap_or(255);
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&large).expect("the image is encoded");
    bytes
}
