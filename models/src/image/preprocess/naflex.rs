//! Computes the size to which NaFlex resizes an image.

/// Returns the largest size that keeps the aspect ratio, with both sides multiples of the patch, in at most
/// `max_patches` patches: the binary search of `get_image_size_for_max_num_patches` in transformers'
/// `image_processing_siglip2.py`, with its bounds and precision, because rounding decides.
pub(super) fn naflex_size(height: u32, width: u32, patch: i64, max_patches: i64) -> (i64, i64) {
    const EPSILON: f64 = 1e-5;
    let patch_side = patch as f64;
    let scaled = |scale: f64, side: u32| {
        let patches = (f64::from(side) * scale / patch_side).ceil();
        (patches * patch_side).max(patch_side) as i64
    };
    let (mut scale_min, mut scale_max) = (EPSILON / 10.0, 100.0);
    while scale_max - scale_min >= EPSILON {
        let scale = f64::midpoint(scale_min, scale_max);
        let patches = (scaled(scale, height) / patch) * (scaled(scale, width) / patch);
        if patches <= max_patches {
            scale_min = scale;
        } else {
            scale_max = scale;
        }
    }
    (scaled(scale_min, height), scaled(scale_min, width))
}
