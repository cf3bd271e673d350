//! Reads the preprocessing recipe from a snapshot or a configuration, with the defaults of the processor
//! classes.

use std::path::Path;

use serde::Deserialize;
use tch::Device;

use super::{FILTERS, Filter, InputOptions, Preprocessor, Recipe, Tiling};
use crate::ModelError;
use crate::snapshot::folder::Snapshot;

/// The fields of `preprocessor_config.json` that are used.
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

/// The fields of `processor_config.json`, which holds the same settings where transformers wrote the
/// snapshot.
#[derive(Deserialize)]
struct ProcessorConfig {
    image_processor: Config,
}

#[derive(Deserialize)]
struct Size {
    height: Option<i64>,
    width: Option<i64>,
}

const FILE: &str = "preprocessor_config.json";
const PROCESSOR_FILE: &str = "processor_config.json";
const IMAGENET_MEAN: [f64; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f64; 3] = [0.229, 0.224, 0.225];
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// The largest side that is accepted, in pixels: a larger one would be a mistake, since the published models
/// take at most 1024.
pub(crate) const SIDE_MAX: i64 = 8192;

impl Preprocessor {
    /// Builds the preprocessor that the configuration of a TorchScript module describes.
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
        Ok(Self { recipe, mean: input.mean, std: input.std, rescale: 1.0 / 255.0, device: Device::Cpu })
    }

    /// Reads the preprocessor of the snapshot in a folder, whether its weights are there or not.
    ///
    /// # Errors
    /// Fails when a file is missing, or asks for something that is not supported.
    pub fn of_snapshot(folder: &Path) -> Result<Self, ModelError> {
        Self::load(&Snapshot::open(folder)?)
    }

    /// Reads the preprocessor that the snapshot describes.
    ///
    /// # Errors
    /// Fails when the file is missing, or asks for something that is not supported.
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
            // The classes' default where their file names no filter.
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
                // The class default where the file does not disable it: resize the shorter side to one
                // length, then crop.
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
            device: Device::Cpu,
        })
    }
}

/// Reads the tiling settings: the file's values over the class defaults of `Molmo2ImageProcessor`.
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
