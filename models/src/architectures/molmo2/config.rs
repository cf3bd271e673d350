//! The configuration in `config.json`, in the key names of the published files and in those that transformers
//! writes today.

use serde::Deserialize;

use crate::image::preprocess::Preprocessor;
use crate::nn::blocks::QkNorm;
use crate::nn::encoder::Sizes;
use crate::nn::layers::Activation;
use crate::nn::rotary::{RopeParameters, Yarn};
use crate::snapshot::limits::{
    LAYERS_MAX, PATCH_MAX, VOCABULARY_MAX, WIDTH_MAX, check_transformer, in_range,
};

/// The most positions that are accepted. A larger number would be a slip: published models take 65,536
/// positions.
const POSITIONS_MAX: i64 = 10_000_000;
/// The most layers of the image tower that are concatenated; published models take two.
const FEATURE_LAYERS_MAX: usize = 16;

/// The contents of `config.json`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(alias = "vit_config")]
    pub(super) vision_config: VisionConfig,
    pub(super) adapter_config: AdapterConfig,
    pub(super) text_config: TextConfig,
    pub(super) image_patch_id: i64,
}

/// The section `vision_config`, formerly `vit_config`.
#[derive(Debug, Deserialize)]
pub(super) struct VisionConfig {
    pub(super) hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    head_dim: i64,
    hidden_act: Activation,
    layer_norm_eps: f64,
    #[serde(alias = "image_default_input_size")]
    image_size: [i64; 2],
    #[serde(alias = "image_patch_size")]
    pub(super) patch_size: i64,
    #[serde(alias = "image_num_pos")]
    pub(super) num_position_embeddings: i64,
}

/// The section `adapter_config`.
#[derive(Debug, Deserialize)]
pub(super) struct AdapterConfig {
    #[serde(alias = "vit_layers")]
    vision_feature_layer: Vec<i64>,
    pub(super) hidden_size: i64,
    pub(super) num_attention_heads: i64,
    num_key_value_heads: i64,
    pub(super) head_dim: i64,
    pub(super) hidden_act: Activation,
    pub(super) intermediate_size: i64,
    text_hidden_size: i64,
    #[serde(default = "yes")]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
}

/// The section `text_config`.
#[derive(Debug, Deserialize)]
pub(super) struct TextConfig {
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) num_hidden_layers: i64,
    pub(super) num_attention_heads: i64,
    pub(super) num_key_value_heads: i64,
    pub(super) head_dim: i64,
    pub(super) hidden_act: Activation,
    pub(super) vocab_size: i64,
    pub(super) additional_vocab_size: i64,
    pub(super) max_position_embeddings: i64,
    #[serde(alias = "layer_norm_eps")]
    pub(super) rms_norm_eps: f64,
    pub(super) qk_norm_type: QkNorm,
    #[serde(default = "yes")]
    use_qk_norm: bool,
    #[serde(default)]
    pub(super) norm_after: bool,
    #[serde(default, alias = "qkv_bias")]
    pub(super) attention_bias: bool,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<RopeParameters>,
    rope_theta: Option<f64>,
    rope_scaling_layers: Option<Vec<i64>>,
}

fn yes() -> bool {
    true
}

impl Config {
    /// Checks what the layers take for granted.
    pub(super) fn check(&self) -> Result<(), String> {
        let within = |section: &'static str| move |fault: String| format!("{section}: {fault}");
        self.vision_config.check().map_err(within("vision_config"))?;
        self.adapter_config.check(&self.vision_config).map_err(within("adapter_config"))?;
        self.text_config.check().map_err(within("text_config"))?;
        let (adapter, text) = (self.adapter_config.text_hidden_size, self.text_config.hidden_size);
        if adapter != text {
            return Err(format!("adapter_config: text_hidden_size {adapter} is not hidden_size {text}"));
        }
        in_range("image_patch_id", self.image_patch_id, 0..=self.text_config.table_rows() - 1)
    }

    /// Returns the indices of the image tower's hidden states that are concatenated, of which 0 is the
    /// embeddings.
    ///
    /// Negative layers count from the last of the layers that the file names, although published weights end
    /// with the deepest layer that is read.
    pub(super) fn feature_states(&self) -> Vec<usize> {
        let layers = self.vision_config.num_hidden_layers;
        let state = |layer: &i64| usize::try_from(layer.rem_euclid(layers) + 1).unwrap_or(0);
        self.adapter_config.vision_feature_layer.iter().map(state).collect()
    }

    /// Returns the sizes of the image tower, no deeper than the deepest layer that is read.
    pub(super) fn vision_sizes(&self) -> Sizes {
        let deepest = self.feature_states().into_iter().max().unwrap_or(0);
        Sizes { layers: i64::try_from(deepest).unwrap_or(0), ..self.vision_config.sizes() }
    }

    /// Returns the number of values of a patch after concatenation.
    pub(super) fn feature_width(&self) -> i64 {
        self.vision_config.hidden_size * self.adapter_config.vision_feature_layer.len() as i64
    }

    /// Checks that the processor outputs the crops that the image tower takes.
    pub(super) fn check_preprocessor(&self, preprocessor: &Preprocessor) -> Result<(), String> {
        let VisionConfig { image_size, patch_size, .. } = self.vision_config;
        match preprocessor.tiling() {
            Some(tiling) if [tiling.crop, tiling.crop] == image_size && tiling.patch == patch_size => Ok(()),
            _ => Err(format!(
                "the image processor does not give crops of {image_size:?} pixels in patches of {patch_size}"
            )),
        }
    }
}

impl VisionConfig {
    fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            eps: self.layer_norm_eps,
        }
    }

    fn check(&self) -> Result<(), String> {
        self.sizes().check()?;
        in_range("patch_size", self.patch_size, 1..=PATCH_MAX)?;
        in_range("image_size", self.image_size[0], self.patch_size..=WIDTH_MAX)?;
        in_range("image_size", self.image_size[1], self.patch_size..=WIDTH_MAX)?;
        let patches: i64 = self.image_size.iter().map(|side| side / self.patch_size).product();
        if self.num_position_embeddings != patches {
            let count = self.num_position_embeddings;
            return Err(format!("num_position_embeddings {count}, but a crop has {patches} patches"));
        }
        check_heads(self.num_attention_heads, self.num_key_value_heads)?;
        if self.head_dim * self.num_attention_heads != self.hidden_size {
            return Err(format!("head_dim {} is not hidden_size by heads", self.head_dim));
        }
        Ok(())
    }
}

fn check_heads(heads: i64, key_heads: i64) -> Result<(), String> {
    if heads == key_heads {
        return Ok(());
    }
    Err(format!("num_key_value_heads {key_heads} other than num_attention_heads {heads} is not supported"))
}

impl AdapterConfig {
    fn check(&self, vision: &VisionConfig) -> Result<(), String> {
        in_range("intermediate_size", self.intermediate_size, 1..=WIDTH_MAX)?;
        in_range("num_attention_heads", self.num_attention_heads, 1..=WIDTH_MAX)?;
        in_range("head_dim", self.head_dim, 1..=WIDTH_MAX / self.num_attention_heads)?;
        check_heads(self.num_attention_heads, self.num_key_value_heads)?;
        if self.hidden_size != vision.hidden_size {
            return Err(format!("hidden_size {} is not that of vision_config", self.hidden_size));
        }
        if !(1..=FEATURE_LAYERS_MAX).contains(&self.vision_feature_layer.len()) {
            return Err(format!("vision_feature_layer must name 1 to {FEATURE_LAYERS_MAX} layers"));
        }
        let layers = vision.num_hidden_layers;
        self.vision_feature_layer
            .iter()
            .try_for_each(|&layer| in_range("vision_feature_layer", layer, -layers..=layers - 1))
    }
}

impl TextConfig {
    fn check(&self) -> Result<(), String> {
        let (heads, key_heads) = (self.num_attention_heads, self.num_key_value_heads);
        // The width of the heads is independent of the hidden size here, and checked below.
        check_transformer(
            self.hidden_size,
            self.intermediate_size,
            self.num_hidden_layers,
            1,
            self.rms_norm_eps,
            1,
        )?;
        in_range("num_attention_heads", heads, 1..=WIDTH_MAX)?;
        in_range("num_key_value_heads", key_heads, 1..=heads)?;
        in_range("head_dim", self.head_dim, 2..=WIDTH_MAX / heads)?;
        in_range("vocab_size", self.vocab_size, 1..=VOCABULARY_MAX)?;
        in_range("additional_vocab_size", self.additional_vocab_size, 0..=VOCABULARY_MAX)?;
        in_range("max_position_embeddings", self.max_position_embeddings, 1..=POSITIONS_MAX)?;
        if heads % key_heads != 0 {
            return Err(format!("num_attention_heads {heads} is not a multiple of {key_heads} key heads"));
        }
        if self.head_dim % 2 != 0 {
            return Err(format!("head_dim {} is not a multiple of 2", self.head_dim));
        }
        if !self.use_qk_norm {
            return Err("use_qk_norm = false is not supported".to_owned());
        }
        for &layer in self.rope_scaling_layers.iter().flatten() {
            in_range("rope_scaling_layers", layer, 0..=LAYERS_MAX)?;
        }
        self.rope().map(|_| ())
    }

    /// Returns the base of the rotary embedding, and the YaRN scaling of the layers that have one.
    pub(super) fn rope(&self) -> Result<(f64, Option<Yarn>), String> {
        let parameters = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = parameters.and_then(|parameters| parameters.rope_theta).or(self.rope_theta);
        let theta = theta.ok_or_else(|| "rope_theta is missing".to_owned())?;
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("rope_theta {theta} must be greater than 1"));
        }
        Ok((theta, parameters.map_or(Ok(None), RopeParameters::scaling)?))
    }

    /// Returns whether a layer has the scaled rotary embedding; all have it where none are listed.
    pub(super) fn scales_rope(&self, layer: i64) -> bool {
        self.rope_scaling_layers.as_ref().is_none_or(|layers| layers.contains(&layer))
    }

    /// Returns the number of rows of the token table: the base vocabulary and the added tokens. All of them
    /// can be read, but only the base vocabulary can be generated.
    pub(super) fn table_rows(&self) -> i64 {
        self.vocab_size + self.additional_vocab_size
    }
}
