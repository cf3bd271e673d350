//! Preprocesses an RGB image into the pixel tensor that a model was trained on, as its
//! `preprocessor_config.json` says; knows no model.
//!
//! Each recipe repeats the order of operations of the processor class in transformers, because resizing
//! before or after the conversion to floating point differs in more than a tenth of the pixels.

mod bilinear;
mod config;
mod input_options;
mod limits;
mod long_side;
mod naflex;
mod resize;
mod scratch;
mod staged;
#[cfg(test)]
mod tests;
mod tiling;

use ::image::RgbImage;
use tch::{Device, Kind, TchError, Tensor};

use self::bilinear::resize_rounded;
pub(crate) use self::config::SIDE_MAX;
pub(crate) use self::input_options::InputOptions;
pub use self::limits::PreprocessLimits;
use self::naflex::naflex_size;
use self::resize::{Resize, Samples};
use self::staged::Rest;
pub use self::tiling::Tiles;
pub(crate) use self::tiling::Tiling;
use crate::ModelError;
use crate::image::decoded::{DecodedImage, Scale};

/// An image that is ready for a model.
#[derive(Debug)]
pub struct Pixels {
    /// The values, in the shape that the layout names: fp32 on the CPU, except for [`PixelLayout::Bytes`].
    pub values: Tensor,
    /// The layout of the values.
    pub layout: PixelLayout,
    /// The upright width and height of the full-size image, in pixels, at whatever scale it was decoded.
    pub image_size: [u32; 2],
    /// The work that is left to the device, if there is any.
    rest: Option<Box<Rest>>,
}

/// The layout of the values of [`Pixels`]. A recipe that yields another one adds a variant.
#[derive(Debug)]
pub enum PixelLayout {
    /// One image of the model's resolution, [3, height, width].
    Planes,
    /// The image unchanged, [height, width, 3] in bytes: for a model that resizes by itself, or while the
    /// remaining work is left to a GPU.
    Bytes,
    /// The patches of an image of any resolution (NaFlex), [patches, patch·patch·3], with the values of a
    /// patch in the order row, column, channel.
    Patches {
        /// Rows and columns of patches.
        grid: [i64; 2],
    },
    /// The patches of several crops (Molmo2), [crops, patches, patch·patch·3], and how tokens follow from
    /// them.
    Crops(Tiles),
}

/// A recipe that turns an image into [`Pixels`]; shared between threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    recipe: Recipe,
    /// The mean of each channel, in the range 0–1.
    mean: [f64; 3],
    std: [f64; 3],
    /// The factor that scales bytes, usually 1/255.
    rescale: f64,
    /// The device on which images are resized and normalised, as far as it supports the recipe.
    device: Device,
}

#[derive(Debug, Clone, PartialEq)]
enum Recipe {
    /// The recipe of `DINOv3ViTImageProcessor`: convert to fp32, then resize.
    ResizeFloat { height: i64, width: i64, filter: Filter },
    /// The recipe of `SiglipImageProcessor`, and of `CLIPImageProcessor` with one size and no crop: resize in
    /// bytes, then convert to fp32.
    ResizeBytes { height: i64, width: i64, filter: Filter },
    /// No processing: the image unchanged.
    Bytes,
    /// The recipe of `Siglip2ImageProcessor`: resize to the size that keeps the aspect ratio within a number
    /// of patches.
    NaFlex { patch: i64, max_patches: i64, filter: Filter },
    /// The recipe of `Molmo2ImageProcessor`: the whole image and crops of it, resized in fp32 without
    /// antialiasing, then rounded.
    Tiles(Tiling),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Filter {
    Bilinear,
    Bicubic,
}

/// The resize filters by their names in the configuration.
pub(crate) const FILTERS: [&str; 2] = ["bilinear", "bicubic"];

impl Preprocessor {
    /// Returns a recipe that leaves images unchanged, for a model that resizes and normalises by itself.
    pub fn none() -> Self {
        Self { recipe: Recipe::Bytes, mean: [0.0; 3], std: [1.0; 3], rescale: 1.0, device: Device::Cpu }
    }

    /// Returns the smallest scale at which an image of this upright width and height may be decoded for this
    /// model: one that has no fewer pixels than the image is resized to.
    pub fn scale(&self, [width, height]: [u32; 2]) -> Scale {
        let wanted = match &self.recipe {
            Recipe::Bytes => return Scale::WHOLE,
            &Recipe::ResizeFloat { height, width, .. } | &Recipe::ResizeBytes { height, width, .. } => {
                [width, height]
            }
            &Recipe::NaFlex { patch, max_patches, .. } => {
                let (height, width) = naflex_size(height, width, patch, max_patches);
                [width, height]
            }
            Recipe::Tiles(tiling) => {
                let [height, width] = tiling.plan(height, width).canvas;
                [width.max(tiling.crop), height.max(tiling.crop)]
            }
        };
        Scale::covering([width, height], wanted.map(|side| u32::try_from(side).unwrap_or(u32::MAX)))
    }

    /// Resizes and normalises one image, with the default limits.
    ///
    /// # Errors
    /// Fails when libtorch does, or when the image has no pixels.
    pub fn apply(&self, image: &RgbImage) -> Result<Pixels, ModelError> {
        self.apply_sized(image, [image.width(), image.height()], &PreprocessLimits::default())
    }

    /// Resizes and normalises an image that was decoded at a scale. All that depends on the proportions uses
    /// those of the full-size image, because eighths are rounded to pixels.
    ///
    /// # Errors
    /// Fails when libtorch does, or when the image has no pixels; with [`ModelError::Abandoned`] when the
    /// work is not wanted any more.
    pub fn apply_decoded(
        &self,
        image: &DecodedImage,
        limits: &PreprocessLimits<'_>,
    ) -> Result<Pixels, ModelError> {
        self.apply_sized(&image.pixels, image.size, limits)
    }

    /// Returns this recipe for a model on `device`. A GPU gets all the work that it supports: its images are
    /// finished on the stream of the model that receives them.
    #[must_use]
    pub fn for_device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    fn apply_sized(
        &self,
        image: &RgbImage,
        image_size: [u32; 2],
        limits: &PreprocessLimits<'_>,
    ) -> Result<Pixels, ModelError> {
        if image.as_raw().is_empty() {
            return Err(ModelError::Unsupported("an image without pixels".to_owned()));
        }
        if self.device.is_cuda()
            && let Some(staged) = self.stage(image, image_size, self.device)
        {
            return Ok(staged);
        }
        let (values, layout) = self.values_of(image, image_size, limits)?;
        Ok(Pixels { values, layout, image_size, rest: None })
    }

    /// Applies the recipe to an image that has this upright width and height at full size.
    fn values_of(
        &self,
        image: &RgbImage,
        [image_width, image_height]: [u32; 2],
        limits: &PreprocessLimits<'_>,
    ) -> Result<(Tensor, PixelLayout), ModelError> {
        match &self.recipe {
            Recipe::Bytes => Ok((whole_image(image)?, PixelLayout::Bytes)),
            &Recipe::ResizeFloat { height, width, filter } => {
                let samples = Samples::Floats { factor: self.rescale };
                let resized = Resize { samples, filter, height, width }.apply(image, limits)?;
                Ok((self.normalise(&resized, 1.0)?, PixelLayout::Planes))
            }
            &Recipe::ResizeBytes { height, width, filter } => {
                let resize = Resize { samples: Samples::Bytes, filter, height, width };
                Ok((self.normalised_bytes(&resize.apply(image, limits)?)?, PixelLayout::Planes))
            }
            &Recipe::NaFlex { patch, max_patches, filter } => {
                let (height, width) = naflex_size(image_height, image_width, patch, max_patches);
                let resize = Resize { samples: Samples::Bytes, filter, height, width };
                let values = self.normalised_bytes(&resize.apply(image, limits)?)?;
                let (rows, columns) = (height / patch, width / patch);
                let patches = values
                    .f_view([3, rows, patch, columns, patch])?
                    .f_permute([1, 3, 2, 4, 0])?
                    .f_reshape([rows * columns, patch * patch * 3])?;
                Ok((patches, PixelLayout::Patches { grid: [rows, columns] }))
            }
            Recipe::Tiles(tiling) => {
                let plan = tiling.plan(image_height, image_width);
                let view = |size| {
                    limits.check_wanted()?;
                    Ok::<_, ModelError>(self.normalise(&resize_rounded(image, size)?, self.rescale)?)
                };
                let values =
                    tiling.patches(&plan, &view([tiling.crop, tiling.crop])?, &view(plan.canvas)?)?;
                Ok((values, PixelLayout::Crops(tiling.tiles(&plan)?)))
            }
        }
    }

    fn normalised_bytes(&self, resized: &Tensor) -> Result<Tensor, TchError> {
        self.normalise(&resized.f_to_kind(Kind::Float)?, self.rescale)
    }

    /// Computes (x − mean / rescale) / (std / rescale), [1, 3, height, width] → [3, height, width]:
    /// transformers folds the rescaling into the normalisation where one follows the other.
    fn normalise(&self, x: &Tensor, rescale: f64) -> Result<Tensor, TchError> {
        let channels = |values: [f64; 3]| {
            Tensor::f_from_slice(&values.map(|value| value / rescale))?
                .f_to_kind(Kind::Float)?
                .f_view([3, 1, 1])
        };
        x.f_squeeze_dim(0)?.f_sub(&channels(self.mean)?)?.f_div(&channels(self.std)?)?.f_contiguous()
    }

    /// Converts a difference of pixel values to 8-bit steps, [3, …] → the same shape. For NaFlex, whose
    /// channels come last, all channels have one std.
    pub(crate) fn eight_bit_steps(&self, difference: &Tensor) -> Tensor {
        let std = self.std.iter().copied().fold(f64::INFINITY, f64::min);
        difference.abs() * (std * 255.0)
    }

    /// Returns the most patches that an image can have, if the model takes any resolution.
    pub(crate) fn max_patches(&self) -> Option<i64> {
        match self.recipe {
            Recipe::NaFlex { max_patches, .. } => Some(max_patches),
            _ => None,
        }
    }

    /// Returns the side of a patch in pixels, if the model takes any resolution.
    pub(crate) fn naflex_patch(&self) -> Option<i64> {
        match self.recipe {
            Recipe::NaFlex { patch, .. } => Some(patch),
            _ => None,
        }
    }

    /// Returns the height and width that every image is resized to, if the model has one resolution.
    pub(crate) fn fixed_size(&self) -> Option<(i64, i64)> {
        match self.recipe {
            Recipe::ResizeFloat { height, width, .. } | Recipe::ResizeBytes { height, width, .. } => {
                Some((height, width))
            }
            Recipe::NaFlex { .. } | Recipe::Tiles(_) | Recipe::Bytes => None,
        }
    }

    /// Returns how images are cut, if the model takes several crops of each.
    pub(crate) fn tiling(&self) -> Option<&Tiling> {
        match &self.recipe {
            Recipe::Tiles(tiling) => Some(tiling),
            _ => None,
        }
    }
}

/// Returns the image's bytes, [height, width, 3].
fn whole_image(image: &RgbImage) -> Result<Tensor, TchError> {
    let size = [i64::from(image.height()), i64::from(image.width()), 3];
    Tensor::f_from_slice(image.as_raw())?.f_view(size)
}

impl Pixels {
    /// Moves the pixels to a device, and does the remaining work there.
    ///
    /// # Errors
    /// Fails when libtorch does.
    pub fn on(self, device: Device) -> Result<Self, ModelError> {
        let (values, layout) = match staged::finish(&[&self], device) {
            Some(finished) => (finished.f_squeeze_dim(0)?, PixelLayout::Planes),
            None => (self.values.f_to_device(device)?, self.layout),
        };
        Ok(Self { values, layout, image_size: self.image_size, rest: None })
    }

    /// Returns the rows and columns of patches, if the model takes any resolution.
    pub fn grid(&self) -> Option<[i64; 2]> {
        match self.layout {
            PixelLayout::Patches { grid } => Some(grid),
            _ => None,
        }
    }

    /// Returns how tokens follow from the crops, if the model takes several.
    pub fn tiles(&self) -> Option<&Tiles> {
        match &self.layout {
            PixelLayout::Crops(tiles) => Some(tiles),
            _ => None,
        }
    }
}

/// Stacks images of one resolution to a batch of [batch, 3, height, width].
pub(crate) fn stack(images: &[&Pixels], device: Device) -> Tensor {
    if let Some(finished) = staged::finish(images, device) {
        return finished;
    }
    let values: Vec<&Tensor> = images.iter().map(|image| &image.values).collect();
    Tensor::stack(&values, 0).to_device(device)
}
