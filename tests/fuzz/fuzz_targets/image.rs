//! Decodes any bytes as an image. Nothing may panic, no limit may be exceeded, and the size that the header
//! declares is that of the decoded image. Nothing behind a JPEG changes its pixels.

#![no_main]

use concord_models::{ImageLimits, Scale, declared_size, decode_at, jpeg_size};
use libfuzzer_sys::fuzz_target;

const LIMITS: ImageLimits = ImageLimits { max_pixels: 1 << 16, max_scratch_bytes: 4 << 20 };

// Image decoders may panic, where the panic is caught; libfuzzer's own hook would end the process before
// that.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |bytes: &[u8]| {
    let declared = declared_size(bytes);
    let Ok(whole) = decode_at(bytes, LIMITS, Scale::WHOLE, &|| true) else { return };
    let [width, height] = whole.size;
    assert!(u64::from(width) * u64::from(height) <= LIMITS.max_pixels);
    assert_eq!(whole.pixels.dimensions(), (width, height));
    let declared = declared.expect("what is decoded has a size");
    assert!([[width, height], [height, width]].contains(&declared), "{declared:?}, but {width} × {height}");
    let upright = jpeg_size(bytes, LIMITS).expect("what is decoded has a size");
    assert!(upright.is_none_or(|size| size == whole.size), "{upright:?}, but {width} × {height}");
    let small = decode_at(bytes, LIMITS, Scale::covering([8, 8], [1, 1]), &|| true);
    assert_eq!(small.map(|image| image.size), Ok(whole.size));
    if !bytes.starts_with(b"\xff\xd8") {
        return;
    }
    let longer = [bytes, b"\xff\xd9\xff\xd8 and more"].concat();
    let again = decode_at(&longer, LIMITS, Scale::WHOLE, &|| true).expect("what stands behind does not matter");
    assert!(again.pixels == whole.pixels);
});
