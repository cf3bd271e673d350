//! Resizes images as the processors do, and computes the sizes that they resize to.

use tch::{TchError, Tensor};

use super::Filter;

/// Resizes with antialiasing in the tensor's own type, as `torchvision.transforms.v2.functional.resize` does
/// on a CPU.
pub(super) fn resize(x: &Tensor, height: i64, width: i64, filter: Filter) -> Result<Tensor, TchError> {
    match filter {
        Filter::Bilinear => {
            x.f_internal_upsample_bilinear2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
        Filter::Bicubic => {
            x.f_internal_upsample_bicubic2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
    }
}

/// Resizes without antialiasing in fp32, and rounds to whole numbers from 0 to 255.
pub(super) fn resize_rounded(x: &Tensor, size: [i64; 2]) -> Result<Tensor, TchError> {
    x.f_upsample_bilinear2d(size, false, None::<f64>, None::<f64>)?.f_round()?.f_clamp(0.0, 255.0)
}

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
