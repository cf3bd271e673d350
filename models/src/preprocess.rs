//! An RGB image → the pixel tensor that a model was trained on, as its `preprocessor_config.json` says.
//!
//! Each recipe repeats the order of operations of the processor class in transformers, because
//! resizing before or after the change to floating point differs in more than a tenth of the pixels.

use image::RgbImage;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::molmo2::{Tiles, Tiling};
use crate::snapshot::Snapshot;
use crate::torchscript::InputOptions;

/// One image, ready for a model.
#[derive(Debug)]
pub struct Pixels {
    /// [3, height, width] where the model has one resolution, otherwise [patches, patch·patch·3] with
    /// the values of a patch in the order row, column, channel, of several crops [crops, patches, patch·patch·3]; fp32,
    /// on the CPU. For a model that takes images as they are: [height, width, 3], bytes.
    pub values: Tensor,
    /// Rows and columns of patches, where the model takes any resolution (NaFlex).
    pub grid: Option<[i64; 2]>,
    /// How the tokens of an image follow from its crops, where the model takes several (Molmo2).
    pub tiles: Option<Tiles>,
    /// Width and height of the image as it was, in pixels.
    pub image_size: [u32; 2],
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

/// `preprocessor_config.json`, the part that is used.
#[derive(Deserialize)]
struct Config {
    image_processor_type: String,
    size: Option<Size>,
    resample: Option<u8>,
    do_resize: Option<bool>,
    do_center_crop: Option<bool>,
    do_rescale: Option<bool>,
    rescale_factor: Option<f64>,
    do_normalize: Option<bool>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    patch_size: Option<i64>,
    max_num_patches: Option<i64>,
    max_crops: Option<i64>,
    overlap_margins: Option<[i64; 2]>,
    pooling_size: Option<[i64; 2]>,
}

/// `processor_config.json`, which holds the same where transformers wrote the snapshot.
#[derive(Deserialize)]
struct ProcessorConfig {
    image_processor: Config,
}

#[derive(Deserialize)]
struct Size {
    height: Option<i64>,
    width: Option<i64>,
}

/// How images may be resized, as the configuration calls it.
pub const FILTERS: [&str; 2] = ["bilinear", "bicubic"];

const FILE: &str = "preprocessor_config.json";
const PROCESSOR_FILE: &str = "processor_config.json";
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// A larger side would be a mistake: the published models take at most 1024.
const SIDE_MAX: i64 = 8192;

impl Preprocessor {
    /// Leaves images as they are, for a model that resizes and normalises by itself.
    pub fn none() -> Self {
        Self { recipe: Recipe::Bytes, mean: [0.0; 3], std: [1.0; 3], rescale: 1.0 }
    }

    /// The one that the configuration of a TorchScript module describes.
    pub(crate) fn of_input(input: &InputOptions) -> Result<Self, String> {
        let filter = match FILTERS.iter().position(|name| *name == input.filter) {
            Some(0) => Filter::Bilinear,
            Some(_) => Filter::Bicubic,
            None => {
                return Err(format!(
                    "input.filter {:?}: must be one of {}",
                    input.filter,
                    FILTERS.join(", ")
                ));
            }
        };
        let (height, width) = (input.height, input.width);
        if [height, width].iter().any(|side| !(1..=SIDE_MAX).contains(side)) {
            return Err(format!("input of {height} × {width} pixels: a side must be from 1 to {SIDE_MAX}"));
        }
        if input.std.iter().any(|&std| std <= 0.0 || !std.is_finite()) {
            return Err(format!("input.std {:?} must be greater than 0", input.std));
        }
        let recipe = Recipe::ResizeBytes { height, width, filter };
        Ok(Self { recipe, mean: input.mean, std: input.std, rescale: 1.0 / 255.0 })
    }

    /// The one that the snapshot describes.
    ///
    /// # Errors
    /// When the file is missing, or asks for something that is not done here.
    pub(crate) fn load(snapshot: &Snapshot) -> Result<Self, ModelError> {
        let (file, config) = if !snapshot.path(FILE).exists() && snapshot.path(PROCESSOR_FILE).exists() {
            (PROCESSOR_FILE, snapshot.json::<ProcessorConfig>(PROCESSOR_FILE)?.image_processor)
        } else {
            (FILE, snapshot.json(FILE)?)
        };
        Self::from_config(&config).map_err(|message| ModelError::malformed(&snapshot.path(file), message))
    }

    fn from_config(config: &Config) -> Result<Self, String> {
        if config.do_resize == Some(false) {
            return Err("do_resize = false is not supported: images of all sizes must become one".to_owned());
        }
        if config.do_center_crop == Some(true) {
            return Err("do_center_crop = true is not supported".to_owned());
        }
        let processor = config.image_processor_type.trim_end_matches("Fast").trim_end_matches("Pil");
        let filter = match config.resample {
            // What the classes do when their file does not say.
            None if matches!(processor, "SiglipImageProcessor" | "CLIPImageProcessor") => Filter::Bicubic,
            None | Some(2) => Filter::Bilinear,
            Some(3) => Filter::Bicubic,
            Some(other) => {
                return Err(format!("resample {other} is not supported: 2 (bilinear), 3 (bicubic)"));
            }
        };
        let (height, width) = config.size.as_ref().map_or((None, None), |size| (size.height, size.width));
        let side = |side: Option<i64>, default: i64| match side.unwrap_or(default) {
            side if (1..=SIDE_MAX).contains(&side) => Ok(side),
            side => Err(format!("size {side} is not a side in pixels: 1 to {SIDE_MAX}")),
        };
        let (recipe, default_mean, default_std) = match processor {
            "DINOv3ViTImageProcessor" => {
                let recipe =
                    Recipe::ResizeFloat { height: side(height, 224)?, width: side(width, 224)?, filter };
                (recipe, IMAGENET_MEAN, IMAGENET_STD)
            }
            "SiglipImageProcessor" => {
                let recipe =
                    Recipe::ResizeBytes { height: side(height, 224)?, width: side(width, 224)?, filter };
                (recipe, [0.5; 3], [0.5; 3])
            }
            "CLIPImageProcessor" => {
                // What the class does when its file does not say: the shorter side to one length, then a crop.
                let (Some(height), Some(width), Some(false)) = (height, width, config.do_center_crop) else {
                    return Err(
                        "CLIPImageProcessor needs a size of height and width, and do_center_crop = false"
                            .to_owned(),
                    );
                };
                let recipe = Recipe::ResizeBytes {
                    height: side(Some(height), 0)?,
                    width: side(Some(width), 0)?,
                    filter,
                };
                (recipe, CLIP_MEAN, CLIP_STD)
            }
            "Siglip2ImageProcessor" => {
                let (patch, max_patches) = (side(config.patch_size, 16)?, side(config.max_num_patches, 256)?);
                (Recipe::NaFlex { patch, max_patches, filter }, [0.5; 3], [0.5; 3])
            }
            "Molmo2ImageProcessor" => (Recipe::Tiles(tiling(config, filter)?), [0.5; 3], [0.5; 3]),
            other => return Err(format!("image_processor_type {other} is not supported")),
        };
        let rescale =
            if config.do_rescale == Some(false) { 1.0 } else { config.rescale_factor.unwrap_or(1.0 / 255.0) };
        if !(rescale > 0.0 && rescale.is_finite()) {
            return Err(format!("rescale_factor {rescale} must be greater than 0"));
        }
        let normalize = config.do_normalize != Some(false);
        let std = if normalize { config.image_std.unwrap_or(default_std) } else { [1.0; 3] };
        if std.iter().any(|&std| std <= 0.0) {
            return Err(format!("image_std {std:?} must be greater than 0"));
        }
        Ok(Self {
            recipe,
            mean: if normalize { config.image_mean.unwrap_or(default_mean) } else { [0.0; 3] },
            std,
            rescale,
        })
    }

    /// Resizes and normalises one image.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn apply(&self, image: &RgbImage) -> Result<Pixels, ModelError> {
        let bytes = image_tensor(image)?;
        let image_size = [image.width(), image.height()];
        match &self.recipe {
            Recipe::Bytes => {
                let values = bytes.f_squeeze_dim(0)?.f_permute([1, 2, 0])?;
                Ok(Pixels { values, grid: None, tiles: None, image_size })
            }
            &Recipe::ResizeFloat { height, width, filter } => {
                let mut scaled = bytes.f_to_kind(Kind::Float)?;
                // In place: of 64 megapixels each copy takes 768 MB.
                let _same = scaled.f_mul_scalar_(self.rescale)?;
                let resized = resize(&scaled, height, width, filter)?;
                Ok(Pixels { values: self.normalise(&resized, 1.0)?, grid: None, tiles: None, image_size })
            }
            &Recipe::ResizeBytes { height, width, filter } => {
                let resized = resize(&bytes, height, width, filter)?;
                Ok(Pixels {
                    values: self.normalise(&resized.f_to_kind(Kind::Float)?, self.rescale)?,
                    grid: None,
                    tiles: None,
                    image_size,
                })
            }
            &Recipe::NaFlex { patch, max_patches, filter } => {
                let (height, width) = naflex_size(image.height(), image.width(), patch, max_patches);
                let resized = resize(&bytes, height, width, filter)?;
                let values = self.normalise(&resized.f_to_kind(Kind::Float)?, self.rescale)?;
                let (rows, columns) = (height / patch, width / patch);
                let patches = values
                    .f_view([3, rows, patch, columns, patch])?
                    .f_permute([1, 3, 2, 4, 0])?
                    .f_reshape([rows * columns, patch * patch * 3])?;
                Ok(Pixels { values: patches, grid: Some([rows, columns]), tiles: None, image_size })
            }
            Recipe::Tiles(tiling) => {
                let plan = tiling.plan(image.height(), image.width());
                // One channel after the other, as the reference has them: the resize of the other layout rounds differently.
                let floats = bytes.f_to_kind(Kind::Float)?.f_contiguous()?;
                let view = |size| self.normalise(&resize_rounded(&floats, size)?, self.rescale);
                let values =
                    tiling.patches(&plan, &view([tiling.crop, tiling.crop])?, &view(plan.canvas)?)?;
                Ok(Pixels { values, grid: None, tiles: Some(tiling.tiles(&plan)?), image_size })
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

/// The class defaults of `Molmo2ImageProcessor`, and what the file says.
fn tiling(config: &Config, filter: Filter) -> Result<Tiling, String> {
    let (height, width) = config.size.as_ref().map_or((None, None), |size| (size.height, size.width));
    if height != width {
        return Err(format!("size {height:?} × {width:?} is not supported: crops are square"));
    }
    if filter != Filter::Bilinear {
        return Err("resample must be 2 (bilinear)".to_owned());
    }
    let tiling = Tiling {
        crop: height.unwrap_or(378),
        patch: config.patch_size.unwrap_or(14),
        margins: config.overlap_margins.unwrap_or([4, 4]),
        pooling: config.pooling_size.unwrap_or([2, 2]),
        max_crops: config.max_crops.unwrap_or(8),
    };
    tiling.check()?;
    Ok(tiling)
}

/// [1, 3, height, width] of bytes, laid out as the image is (channels last), for which libtorch has its
/// fastest resize.
fn image_tensor(image: &RgbImage) -> Result<Tensor, tch::TchError> {
    let (height, width) = (i64::from(image.height()), i64::from(image.width()));
    Tensor::f_from_slice(image.as_raw())?.f_view([1, height, width, 3])?.f_permute([0, 3, 1, 2])
}

/// With antialiasing, in the tensor's own type, as `torchvision.transforms.v2.functional.resize` on a CPU.
fn resize(x: &Tensor, height: i64, width: i64, filter: Filter) -> Result<Tensor, tch::TchError> {
    match filter {
        Filter::Bilinear => {
            x.f_internal_upsample_bilinear2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
        Filter::Bicubic => {
            x.f_internal_upsample_bicubic2d_aa([height, width], false, None::<f64>, None::<f64>)
        }
    }
}

/// Without antialiasing, in fp32, to whole numbers from 0 to 255.
fn resize_rounded(x: &Tensor, size: [i64; 2]) -> Result<Tensor, tch::TchError> {
    x.f_upsample_bilinear2d(size, false, None::<f64>, None::<f64>)?.f_round()?.f_clamp(0.0, 255.0)
}

/// The largest size that keeps the aspect ratio, with both sides multiples of the patch, in at most
/// `max_patches` patches: the binary search of `get_image_size_for_max_num_patches` in transformers'
/// `image_processing_siglip2.py`, with its bounds and precision, because rounding decides.
fn naflex_size(height: u32, width: u32, patch: i64, max_patches: i64) -> (i64, i64) {
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

/// A batch as models take it: images of one resolution stacked to [batch, 3, height, width].
pub(crate) fn stack(images: &[&Pixels], device: Device) -> Tensor {
    let values: Vec<&Tensor> = images.iter().map(|image| &image.values).collect();
    Tensor::stack(&values, 0).to_device(device)
}
