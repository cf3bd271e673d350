//! The configuration in `config.json`, in both layouts: florence-community's (native transformers) and
//! microsoft's.

use serde::Deserialize;

use crate::nn::layers::Activation;
use crate::snapshot::limits::{
    LAYERS_MAX, PATCH_MAX, VOCABULARY_MAX, WIDTH_MAX, check_transformer, in_range,
};

/// The epsilon of all norms, which is PyTorch's default; no configuration names another.
pub(super) const EPS: f64 = 1e-5;
/// The most stages of a tower; the published ones have four.
const STAGES_MAX: usize = 16;
/// The largest ratio of an MLP's width to that of its stage; the published MLPs are four times as wide.
const MLP_RATIO_MAX: f64 = 64.0;

/// The contents of `config.json`, with the defaults of transformers' `Florence2Config`.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) text_config: TextConfig,
    #[serde(default)]
    pub(super) vision_config: VisionConfig,
    #[serde(default = "default_image_token_id")]
    pub(super) image_token_id: i64,
    #[serde(default = "default_true")]
    pub(super) tie_word_embeddings: bool,
}

fn default_image_token_id() -> i64 {
    51_289
}

fn default_true() -> bool {
    true
}

impl Config {
    /// Checks what the layers take for granted.
    pub(super) fn check(&self) -> Result<(), String> {
        self.text_config.check().map_err(|fault| format!("text_config: {fault}"))?;
        self.vision_config.check().map_err(|fault| format!("vision_config: {fault}"))?;
        let (projection, width) = (self.vision_config.projection_dim, self.text_config.d_model);
        if projection != width {
            return Err(format!(
                "projection_dim {projection} of the image is not d_model {width} of the text"
            ));
        }
        Ok(())
    }
}

/// The section `text_config`, of BART; the defaults are those of transformers' `BartConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct TextConfig {
    pub(super) vocab_size: i64,
    pub(super) d_model: i64,
    pub(super) encoder_layers: i64,
    pub(super) encoder_attention_heads: i64,
    pub(super) encoder_ffn_dim: i64,
    pub(super) decoder_layers: i64,
    pub(super) decoder_attention_heads: i64,
    pub(super) decoder_ffn_dim: i64,
    pub(super) max_position_embeddings: i64,
    pub(super) activation_function: Activation,
    pub(super) scale_embedding: bool,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50_265,
            d_model: 1024,
            encoder_layers: 12,
            encoder_attention_heads: 16,
            encoder_ffn_dim: 4096,
            decoder_layers: 12,
            decoder_attention_heads: 16,
            decoder_ffn_dim: 4096,
            max_position_embeddings: 1024,
            activation_function: Activation::Gelu,
            scale_embedding: false,
        }
    }
}

impl TextConfig {
    fn check(&self) -> Result<(), String> {
        in_range("vocab_size", self.vocab_size, 1..=VOCABULARY_MAX)?;
        in_range("max_position_embeddings", self.max_position_embeddings, 2..=WIDTH_MAX)?;
        for (name, layers, heads, ffn) in [
            ("encoder", self.encoder_layers, self.encoder_attention_heads, self.encoder_ffn_dim),
            ("decoder", self.decoder_layers, self.decoder_attention_heads, self.decoder_ffn_dim),
        ] {
            check_transformer(self.d_model, ffn, layers, heads, EPS, 1)
                .map_err(|fault| format!("{name}: {fault}"))?;
        }
        Ok(())
    }
}

/// The section `vision_config`, of DaViT; the defaults are those of transformers' `Florence2VisionConfig`.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(super) struct VisionConfig {
    in_channels: i64,
    depths: Vec<i64>,
    patch_size: Vec<i64>,
    patch_stride: Vec<i64>,
    patch_padding: Vec<i64>,
    patch_prenorm: Vec<bool>,
    #[serde(alias = "dim_embed")]
    embed_dim: Vec<i64>,
    num_heads: Vec<i64>,
    num_groups: Vec<i64>,
    pub(super) window_size: i64,
    mlp_ratio: f64,
    pub(super) qkv_bias: bool,
    pub(super) activation_function: Activation,
    pub(super) projection_dim: i64,
    max_temporal_embeddings: i64,
    max_position_embeddings: i64,
    /// The size of the position table in time, under the name of microsoft's files.
    visual_temporal_embedding: Option<TemporalEmbedding>,
    /// The size of the position tables in the image, under the name of microsoft's files.
    image_pos_embed: Option<PositionEmbedding>,
}

#[derive(Debug, Deserialize)]
struct TemporalEmbedding {
    max_temporal_embeddings: i64,
}

#[derive(Debug, Deserialize)]
struct PositionEmbedding {
    max_pos_embeddings: i64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            depths: vec![1, 1, 9, 1],
            patch_size: vec![7, 3, 3, 3],
            patch_stride: vec![4, 2, 2, 2],
            patch_padding: vec![3, 1, 1, 1],
            patch_prenorm: vec![false, true, true, true],
            embed_dim: vec![128, 256, 512, 1024],
            num_heads: vec![4, 8, 16, 32],
            num_groups: vec![4, 8, 16, 32],
            window_size: 12,
            mlp_ratio: 4.0,
            qkv_bias: true,
            activation_function: Activation::Gelu,
            projection_dim: 1024,
            max_temporal_embeddings: 100,
            max_position_embeddings: 50,
            visual_temporal_embedding: None,
            image_pos_embed: None,
        }
    }
}

/// The sizes of one stage of the tower.
#[derive(Debug, Clone, Copy)]
pub(super) struct StageSizes {
    /// The number of channels of the stage's input.
    pub(super) inputs: i64,
    /// The number of channels of the stage's output.
    pub(super) width: i64,
    pub(super) depth: i64,
    /// The kernel's side of the convolution that makes the stage's tokens; its stride and padding follow.
    pub(super) patch: i64,
    pub(super) stride: i64,
    pub(super) padding: i64,
    /// True if the norm comes before that convolution.
    pub(super) prenorm: bool,
    pub(super) heads: i64,
    pub(super) groups: i64,
    pub(super) inner: i64,
}

impl VisionConfig {
    fn check(&self) -> Result<(), String> {
        let stages = self.embed_dim.len();
        if !(1..=STAGES_MAX).contains(&stages) {
            return Err(format!("embed_dim has {stages} stages: must be from 1 to {STAGES_MAX}"));
        }
        for (name, length) in [
            ("depths", self.depths.len()),
            ("patch_size", self.patch_size.len()),
            ("patch_stride", self.patch_stride.len()),
            ("patch_padding", self.patch_padding.len()),
            ("patch_prenorm", self.patch_prenorm.len()),
            ("num_heads", self.num_heads.len()),
            ("num_groups", self.num_groups.len()),
        ] {
            if length != stages {
                return Err(format!("{name} has {length} entries, embed_dim {stages}"));
            }
        }
        if self.in_channels != 3 {
            return Err(format!("in_channels {} is not supported: images have 3", self.in_channels));
        }
        in_range("window_size", self.window_size, 1..=PATCH_MAX)?;
        in_range("projection_dim", self.projection_dim, 1..=WIDTH_MAX)?;
        in_range("max_temporal_embeddings", self.temporal_embeddings(), 1..=WIDTH_MAX)?;
        in_range("max_position_embeddings", self.position_embeddings(), 1..=WIDTH_MAX)?;
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio <= MLP_RATIO_MAX) {
            return Err(format!(
                "mlp_ratio {} must be greater than 0, at most {MLP_RATIO_MAX}",
                self.mlp_ratio
            ));
        }
        for (index, width) in self.embed_dim.iter().enumerate() {
            in_range("embed_dim", *width, 1..=WIDTH_MAX)?;
            self.check_stage(index, *width).map_err(|fault| format!("stage {index}: {fault}"))?;
        }
        Ok(())
    }

    fn check_stage(&self, index: usize, width: i64) -> Result<(), String> {
        in_range("depths", self.depths[index], 1..=LAYERS_MAX)?;
        in_range("patch_size", self.patch_size[index], 1..=PATCH_MAX)?;
        in_range("patch_stride", self.patch_stride[index], 1..=PATCH_MAX)?;
        in_range("patch_padding", self.patch_padding[index], 0..=PATCH_MAX)?;
        in_range("the MLP's width", self.inner(width), 1..=WIDTH_MAX)?;
        for (name, parts) in [("num_heads", self.num_heads[index]), ("num_groups", self.num_groups[index])] {
            in_range(name, parts, 1..=width)?;
            if width % parts != 0 {
                return Err(format!("embed_dim {width} is not a multiple of {name} {parts}"));
            }
        }
        Ok(())
    }

    /// Returns the width of the MLPs in a stage.
    fn inner(&self, width: i64) -> i64 {
        (width as f64 * self.mlp_ratio) as i64
    }

    /// Returns the stages of a configuration that was checked.
    pub(super) fn stages(&self) -> Vec<StageSizes> {
        let mut inputs = self.in_channels;
        let mut stages = Vec::new();
        for (index, &width) in self.embed_dim.iter().enumerate() {
            stages.push(StageSizes {
                inputs,
                width,
                depth: self.depths[index],
                patch: self.patch_size[index],
                stride: self.patch_stride[index],
                padding: self.patch_padding[index],
                prenorm: self.patch_prenorm[index],
                heads: self.num_heads[index],
                groups: self.num_groups[index],
                inner: self.inner(width),
            });
            inputs = width;
        }
        stages
    }

    /// Returns the number of channels of the tower's output.
    pub(super) fn width(&self) -> i64 {
        self.embed_dim.last().copied().unwrap_or(0)
    }

    /// Returns the number of rows of the table of positions in time.
    pub(super) fn temporal_embeddings(&self) -> i64 {
        let named = self.visual_temporal_embedding.as_ref().map(|table| table.max_temporal_embeddings);
        named.unwrap_or(self.max_temporal_embeddings)
    }

    /// Returns the number of rows of each of the two tables of positions in the image.
    pub(super) fn position_embeddings(&self) -> i64 {
        let named = self.image_pos_embed.as_ref().map(|table| table.max_pos_embeddings);
        named.unwrap_or(self.max_position_embeddings)
    }

    /// Returns the rows and columns of tokens that the tower makes of an image of this height and width in
    /// pixels.
    pub(super) fn grid(&self, height: i64, width: i64) -> Result<[i64; 2], String> {
        let mut grid = [height, width];
        for stage in self.stages() {
            grid = grid.map(|side| (side + 2 * stage.padding - stage.patch).div_euclid(stage.stride) + 1);
        }
        let most = self.position_embeddings();
        if grid.iter().all(|side| (1..=most).contains(side)) {
            return Ok(grid);
        }
        Err(format!("images of {height} × {width} give {grid:?} tokens: each side must be from 1 to {most}"))
    }
}
