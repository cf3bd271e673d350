//! Large JPEGs as a camera writes them, made of small photographs.

use concord_models::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};

/// Twelve megapixels, as phones take them.
pub(crate) const SIDES: [u32; 2] = [4000, 3000];
/// What cameras write.
const QUALITY: u8 = 90;
/// Levels of noise: a picture that was only enlarged would have next to nothing for the decoder to read.
const NOISE: u32 = 12;

/// The photograph enlarged to twelve megapixels.
pub(crate) fn twelve_megapixels(photograph: &RgbImage) -> Vec<u8> {
    let [long, short] = SIDES;
    let is_wide = photograph.width() >= photograph.height();
    enlarged(photograph, if is_wide { [long, short] } else { [short, long] })
}

/// The photograph at this width and height, with a sensor's noise, as JPEG.
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
    JpegEncoder::new_with_quality(&mut bytes, QUALITY).encode_image(&large).expect("the picture is encoded");
    bytes
}
