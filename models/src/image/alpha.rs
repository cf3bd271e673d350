//! Drops the alpha channel of decoded pixels.

/// Reduces pixels of four bytes to their first three, in place.
pub(super) fn drop_alpha(pixels: &mut Vec<u8>) {
    let count = pixels.len() / 4;
    for pixel in 0..count {
        pixels.copy_within(4 * pixel..4 * pixel + 3, 3 * pixel);
    }
    pixels.truncate(3 * count);
}
