//! An RGB image → the pixel tensor that a model was trained on, as its `preprocessor_config.json` says.
//!
//! Each recipe repeats the order of operations of the processor class in transformers, because
//! resizing before or after the change to floating point differs in more than a tenth of the pixels.

mod config;
mod input_options;
mod resize;
mod staged;
#[cfg(test)]
mod tests;
mod tiling;

use ::image::RgbImage;
use tch::{Device, Kind, Tensor};

pub(crate) use self::config::SIDE_MAX;
pub(crate) use self::input_options::InputOptions;
use self::resize::{naflex_size, resize, resize_rounded};
use self::staged::Rest;
pub use self::tiling::Tiles;
pub(crate) use self::tiling::Tiling;
use crate::ModelError;
use crate::image::decoded::{DecodedImage, Scale};

/// One image, ready for a model.
#[derive(Debug)]
pub struct Pixels {
    /// The values, of the shape that the layout names: fp32 on the CPU, but for bytes.
    pub values: Tensor,
    /// What the values are.
    pub layout: PixelLayout,
    /// Upright width and height of the picture itself, in pixels, however small it was decoded.
    pub image_size: [u32; 2],
    /// What is left to the device, where anything is.
    rest: Option<Box<Rest>>,
}

/// What the values of [`Pixels`] are. A recipe that makes something else adds a variant.
#[derive(Debug)]
pub enum PixelLayout {
    /// One image of the model's resolution, [3, height, width].
    Planes,
    /// The image as it is, [height, width, 3] in bytes: for a model that resizes by itself, and while the rest is left to
    /// a GPU.
    Bytes,
    /// Patches of an image of any resolution (NaFlex), [patches, patch·patch·3], the values of a patch in the order row,
    /// column, channel.
    Patches {
        /// Rows and columns of patches.
        grid: [i64; 2],
    },
    /// Patches of several crops (Molmo2), [crops, patches, patch·patch·3]; how tokens follow from them.
    Crops(Tiles),
}

/// What turns an image into [`Pixels`]; shared between threads.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocessor {
    recipe: Recipe,
    /// Of one channel each, in the range 0–1.
    mean: [f64; 3],
    std: [f64; 3],
    /// Usually 1/255.
    rescale: f64,
    /// Where pictures are resized and normalised, as far as it is able to.
    device: Device,
}

#[derive(Debug, Clone, PartialEq)]
enum Recipe {
    /// `DINOv3ViTImageProcessor`: to fp32, then resize.
    ResizeFloat { height: i64, width: i64, filter: Filter },
    /// `SiglipImageProcessor`, and `CLIPImageProcessor` with one size and no crop: resize in bytes, then to fp32.
    ResizeBytes { height: i64, width: i64, filter: Filter },
    /// None: the image as it is.
    Bytes,
    /// `Siglip2ImageProcessor`: the size that keeps the aspect ratio within a number of patches.
    NaFlex { patch: i64, max_patches: i64, filter: Filter },
    /// `Molmo2ImageProcessor`: the whole and crops, resized in fp32 without antialiasing, then rounded.
    Tiles(Tiling),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Filter {
    Bilinear,
    Bicubic,
}

/// How images may be resized, as the configuration calls it.
pub(crate) const FILTERS: [&str; 2] = ["bilinear", "bicubic"];

impl Preprocessor {
    /// Leaves images as they are, for a model that resizes and normalises by itself.
    pub fn none() -> Self {
        Self { recipe: Recipe::Bytes, mean: [0.0; 3], std: [1.0; 3], rescale: 1.0, device: Device::Cpu }
    }

    /// The smallest scale at which a picture of this upright width and height may be decoded for this model: with no
    /// fewer pixels than it is resized to.
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

    /// Resizes and normalises one image.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn apply(&self, image: &RgbImage) -> Result<Pixels, ModelError> {
        self.apply_sized(image, [image.width(), image.height()])
    }

    /// The same for a picture that was decoded at a scale. What follows from a picture's proportions follows from
    /// those of the picture itself: eighths are rounded to pixels.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn apply_decoded(&self, picture: &DecodedImage) -> Result<Pixels, ModelError> {
        self.apply_sized(&picture.pixels, picture.size)
    }

    /// The same, for a model on `device`. What a GPU can do it is left to do: its pictures are finished on the stream of
    /// the model that they are given to.
    #[must_use]
    pub fn for_device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    fn apply_sized(&self, image: &RgbImage, image_size: [u32; 2]) -> Result<Pixels, ModelError> {
        if self.device.is_cuda()
            && let Some(staged) = self.stage(image, image_size, self.device)
        {
            return Ok(staged);
        }
        let (values, layout) = self.values_of(&image_tensor(image)?, image_size)?;
        Ok(Pixels { values, layout, image_size, rest: None })
    }

    /// Applies the recipe to bytes [1, 3, height, width] of an image that has this upright width and height.
    fn values_of(
        &self,
        bytes: &Tensor,
        [image_width, image_height]: [u32; 2],
    ) -> Result<(Tensor, PixelLayout), tch::TchError> {
        match &self.recipe {
            Recipe::Bytes => Ok((bytes.f_squeeze_dim(0)?.f_permute([1, 2, 0])?, PixelLayout::Bytes)),
            &Recipe::ResizeFloat { height, width, filter } => {
                let mut scaled = bytes.f_to_kind(Kind::Float)?;
                // In place: of 64 megapixels each copy takes 768 MB.
                let _same = scaled.f_mul_scalar_(self.rescale)?;
                let resized = resize(&scaled, height, width, filter)?;
                Ok((self.normalise(&resized, 1.0)?, PixelLayout::Planes))
            }
            &Recipe::ResizeBytes { height, width, filter } => {
                let resized = resize(bytes, height, width, filter)?;
                Ok((self.normalise(&resized.f_to_kind(Kind::Float)?, self.rescale)?, PixelLayout::Planes))
            }
            &Recipe::NaFlex { patch, max_patches, filter } => {
                let (height, width) = naflex_size(image_height, image_width, patch, max_patches);
                let resized = resize(bytes, height, width, filter)?;
                let values = self.normalise(&resized.f_to_kind(Kind::Float)?, self.rescale)?;
                let (rows, columns) = (height / patch, width / patch);
                let patches = values
                    .f_view([3, rows, patch, columns, patch])?
                    .f_permute([1, 3, 2, 4, 0])?
                    .f_reshape([rows * columns, patch * patch * 3])?;
                Ok((patches, PixelLayout::Patches { grid: [rows, columns] }))
            }
            Recipe::Tiles(tiling) => {
                let plan = tiling.plan(image_height, image_width);
                // One channel after the other, as the reference has them: the resize of the other layout rounds differently.
                let floats = bytes.f_to_kind(Kind::Float)?.f_contiguous()?;
                let view = |size| self.normalise(&resize_rounded(&floats, size)?, self.rescale);
                let values =
                    tiling.patches(&plan, &view([tiling.crop, tiling.crop])?, &view(plan.canvas)?)?;
                Ok((values, PixelLayout::Crops(tiling.tiles(&plan)?)))
            }
        }
    }

    /// (x − mean / rescale) / (std / rescale) on [1, 3, height, width] → [3, height, width]: transformers
    /// folds the rescaling into the normalisation where both follow each other.
    fn normalise(&self, x: &Tensor, rescale: f64) -> Result<Tensor, tch::TchError> {
        let channels = |values: [f64; 3]| {
            Tensor::f_from_slice(&values.map(|value| value / rescale))?
                .f_to_kind(Kind::Float)?
                .f_view([3, 1, 1])
        };
        x.f_squeeze_dim(0)?.f_sub(&channels(self.mean)?)?.f_div(&channels(self.std)?)?.f_contiguous()
    }

    /// How many 8-bit steps a difference of pixel values is: [3, …] → the same shape. For NaFlex, whose
    /// channels come last, all channels have one std.
    pub(crate) fn eight_bit_steps(&self, difference: &Tensor) -> Tensor {
        let std = self.std.iter().copied().fold(f64::INFINITY, f64::min);
        difference.abs() * (std * 255.0)
    }

    /// The most patches that an image can have, where the model takes any resolution.
    pub(crate) fn max_patches(&self) -> Option<i64> {
        match self.recipe {
            Recipe::NaFlex { max_patches, .. } => Some(max_patches),
            _ => None,
        }
    }

    /// Patch side in pixels, where the model takes any resolution.
    pub(crate) fn naflex_patch(&self) -> Option<i64> {
        match self.recipe {
            Recipe::NaFlex { patch, .. } => Some(patch),
            _ => None,
        }
    }

    /// Height and width that every image is resized to, where the model has one resolution.
    pub(crate) fn fixed_size(&self) -> Option<(i64, i64)> {
        match self.recipe {
            Recipe::ResizeFloat { height, width, .. } | Recipe::ResizeBytes { height, width, .. } => {
                Some((height, width))
            }
            Recipe::NaFlex { .. } | Recipe::Tiles(_) | Recipe::Bytes => None,
        }
    }

    /// How images are cut, where the model takes several crops of each.
    pub(crate) fn tiling(&self) -> Option<&Tiling> {
        match &self.recipe {
            Recipe::Tiles(tiling) => Some(tiling),
            _ => None,
        }
    }
}

/// [1, 3, height, width] of bytes, laid out as the image is (channels last), for which libtorch has its
/// fastest resize.
fn image_tensor(image: &RgbImage) -> Result<Tensor, tch::TchError> {
    let (height, width) = (i64::from(image.height()), i64::from(image.width()));
    Tensor::f_from_slice(image.as_raw())?.f_view([1, height, width, 3])?.f_permute([0, 3, 1, 2])
}

impl Pixels {
    /// The same pixels on a device, with the rest done there where something is left.
    ///
    /// # Errors
    /// When libtorch refuses.
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

/// A batch as models take it: images of one resolution stacked to [batch, 3, height, width].
pub(crate) fn stack(images: &[&Pixels], device: Device) -> Tensor {
    if let Some(finished) = staged::finish(images, device) {
        return finished;
    }
    let values: Vec<&Tensor> = images.iter().map(|image| &image.values).collect();
    Tensor::stack(&values, 0).to_device(device)
}
