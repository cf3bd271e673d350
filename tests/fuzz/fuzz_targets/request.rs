//! Reads the image out of bodies of every kind, and decodes it. Nothing may panic, and no limit may be
//! exceeded.

#![no_main]

use concord::http::fuzzing;
use concord_models::ImageLimits;
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: u64 = 1 << 16;
const PIXELS_MAX: u64 = 1 << 16;
const CONTENT_TYPES: [&str; 4] =
    ["image/png", "application/json", "multipart/form-data; boundary=b", "application/octet-stream"];

// Image decoders may panic, where the panic is caught; libfuzzer's own hook would end the process before
// that.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |input: &[u8]| {
    let Some((&kind, body)) = input.split_first() else { return };
    let content_type = CONTENT_TYPES[usize::from(kind) % CONTENT_TYPES.len()];
    if let Ok(image) = fuzzing::image(content_type, body, BYTES_MAX) {
        assert!(image.len() as u64 <= BYTES_MAX);
        if let Ok(pixels) = concord_models::decode(&image, ImageLimits::with_max_pixels(PIXELS_MAX)) {
            assert!(u64::from(pixels.width()) * u64::from(pixels.height()) <= PIXELS_MAX);
        }
    }
});
