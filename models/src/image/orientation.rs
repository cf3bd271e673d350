//! The orientation of an image by its EXIF data.

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};

use crate::image::limits::{BYTES_PER_PIXEL, pixel_count};

/// Returns the orientation that an EXIF block names. A broken block does not affect the pixels.
pub(super) fn of_exif(exif: Option<&[u8]>) -> Orientation {
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

/// Returns the upright width and height of an image that is stored with the given ones.
pub(super) fn upright(size: [u32; 2], orientation: Orientation) -> [u32; 2] {
    let [width, height] = size;
    if swaps_sides(orientation) { [height, width] } else { size }
}

/// Turns an image upright.
pub(super) fn turn(image: RgbImage, orientation: Orientation) -> RgbImage {
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

/// Returns the bytes that [`turn`] takes beside the image: nothing, or a second image.
pub(super) fn turn_bytes(size: [u32; 2], orientation: Orientation) -> u64 {
    if swaps_sides(orientation) { pixel_count(size) * BYTES_PER_PIXEL } else { 0 }
}

fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The pixels of an image that is turned upright while its rows arrive, without a second image: photographs
/// of phones are stored on their side more often than not.
pub(super) struct UprightRows {
    pixels: Vec<u8>,
    /// The width and height, as stored.
    size: [u32; 2],
    orientation: Orientation,
    /// The number of rows that have arrived.
    rows: usize,
}

impl UprightRows {
    /// Returns an image of this size, as stored, without rows.
    pub(super) fn new(size: [u32; 2], orientation: Orientation) -> Self {
        let bytes = size.map(|side| side as usize).iter().product::<usize>() * BYTES_PER_PIXEL as usize;
        let pixels = if swaps_sides(orientation) { vec![0; bytes] } else { Vec::with_capacity(bytes) };
        Self { pixels, size, orientation, rows: 0 }
    }

    /// Adds the next rows, which are whole.
    pub(super) fn push(&mut self, rows: &[u8]) {
        if swaps_sides(self.orientation) {
            self.scatter(rows);
        } else {
            self.pixels.extend_from_slice(rows);
        }
    }

    /// Writes each column of the rows as a piece of a row of the turned image.
    fn scatter(&mut self, rows: &[u8]) {
        let [width, height] = self.size.map(|side| side as usize);
        let is_mirrored = |kinds: [Orientation; 2]| kinds.contains(&self.orientation);
        let from_right = is_mirrored([Orientation::Rotate90, Orientation::Rotate270FlipH]);
        let from_bottom = is_mirrored([Orientation::Rotate270, Orientation::Rotate270FlipH]);
        let (rows, _) = rows.as_chunks::<{ BYTES_PER_PIXEL as usize }>();
        let (pixels, _) = self.pixels.as_chunks_mut::<{ BYTES_PER_PIXEL as usize }>();
        let count = rows.len() / width.max(1);
        for x in 0..width {
            let line = if from_bottom { width - 1 - x } else { x };
            let line = &mut pixels[line * height..(line + 1) * height];
            for row in 0..count {
                let y = self.rows + row;
                let at = if from_right { height - 1 - y } else { y };
                line[at] = rows[row * width + x];
            }
        }
        self.rows += count;
    }

    /// Returns the image, or `None` if rows are missing.
    pub(super) fn finish(self) -> Option<RgbImage> {
        let [width, height] = upright(self.size, self.orientation);
        let image = RgbImage::from_raw(width, height, self.pixels)?;
        if swaps_sides(self.orientation) {
            return (self.rows == self.size[1] as usize).then_some(image);
        }
        Some(turn(image, self.orientation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_arrive_upright_as_a_whole_image_is_turned() {
        let stored = RgbImage::from_fn(5, 7, |x, y| ::image::Rgb([x as u8, y as u8, 9]));
        for kind in 1..=8 {
            let orientation = Orientation::from_exif(kind).unwrap();
            for rows_at_once in [1, 3, 7] {
                let mut rows = UprightRows::new([5, 7], orientation);
                stored.as_raw().chunks(rows_at_once * 15).for_each(|piece| rows.push(piece));
                assert_eq!(
                    rows.finish().unwrap(),
                    turn(stored.clone(), orientation),
                    "orientation {kind}, {rows_at_once} rows at once"
                );
            }
        }
        let mut incomplete = UprightRows::new([5, 7], Orientation::Rotate90);
        incomplete.push(&stored.as_raw()[..15]);
        assert!(incomplete.finish().is_none());
    }
}
