//! The image tower, DaViT: stages of blocks that attend within windows, then across channels.
//!
//! The source is Ding et al., "DaViT: Dual Attention Vision Transformers", 2022 (arXiv 2204.03645); numerics
//! follow transformers' `modeling_florence2.py`. Images are [batch, rows, columns, channels] throughout.

use tch::{Kind, Tensor};

use super::config::{EPS, StageSizes, VisionConfig};
use crate::nn::layers::{Activation, Linear, attention, size4, split_heads};
use crate::nn::norm::LayerNorm;
use crate::snapshot::weights::WeightLoader;

/// The stages of the tower, each of which reads the output of the one before it.
#[derive(Debug)]
pub(super) struct Tower {
    stages: Vec<Stage>,
}

/// A stage of the tower: a patch embedding, then blocks of a window half and a channel half.
#[derive(Debug)]
struct Stage {
    embedding: PatchConvolution,
    blocks: Vec<[HalfBlock; 2]>,
}

impl Tower {
    pub(super) fn load(weights: &mut WeightLoader, config: &VisionConfig) -> Self {
        let mut stages = Vec::new();
        for (index, sizes) in config.stages().iter().enumerate() {
            let blocks = (0..sizes.depth).map(|block| {
                let name = format!("model.vision_tower.blocks.{index}.{block}");
                let window = Mixing::Window { heads: sizes.heads, side: config.window_size };
                let channels = Mixing::Channels { groups: sizes.groups };
                [window, channels].map(|mixing| HalfBlock::load(weights, &name, config, sizes, mixing))
            });
            let blocks = blocks.collect();
            let name = format!("model.vision_tower.convs.{index}");
            stages.push(Stage { embedding: PatchConvolution::load(weights, &name, sizes), blocks });
        }
        Self { stages }
    }

    /// Returns each stage's output, [batch, rows, columns, channels], for pixels [batch, 3, height, width].
    pub(super) fn stages(&self, pixels: &Tensor) -> Vec<Tensor> {
        let mut outputs = Vec::new();
        let mut x = pixels.permute([0, 2, 3, 1]);
        for stage in &self.stages {
            x = stage.embedding.forward(&x);
            for half in stage.blocks.iter().flatten() {
                x = half.forward(&x);
            }
            outputs.push(x.shallow_clone());
        }
        outputs
    }

    /// Returns the last stage's output, [batch, rows, columns, channels], for pixels
    /// [batch, 3, height, width].
    pub(super) fn forward(&self, pixels: &Tensor) -> Tensor {
        let mut stages = self.stages(pixels);
        stages.swap_remove(stages.len() - 1)
    }
}

/// A convolution with bias; its weight is [outputs, inputs / groups, side, side].
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
    groups: i64,
}

impl Convolution {
    fn load(weights: &mut WeightLoader, name: &str, shape: [i64; 4], stride: i64, padding: i64) -> Self {
        Self {
            weight: weights.tensor(&format!("{name}.weight"), &shape),
            bias: weights.tensor(&format!("{name}.bias"), &shape[..1]),
            stride,
            padding,
            groups: 1,
        }
    }

    /// Loads a 3 × 3 convolution over each channel by itself.
    fn depthwise(weights: &mut WeightLoader, name: &str, width: i64) -> Self {
        Self { groups: width, ..Self::load(weights, name, [width, 1, 3, 3], 1, 1) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let channels_first = x.permute([0, 3, 1, 2]);
        // The plain convolution would compute in TF32 on CUDA.
        let allow_tf32 = false;
        let convolved = channels_first.internal_convolution(
            &self.weight,
            Some(&self.bias),
            [self.stride, self.stride],
            [self.padding, self.padding],
            [1, 1],
            false,
            [0, 0],
            self.groups,
            false,
            false,
            true,
            allow_tf32,
        );
        convolved.permute([0, 2, 3, 1])
    }
}

/// The overlapping patches that a stage begins with, normalised before or after the convolution, as in
/// `Florence2VisionConvEmbed`.
#[derive(Debug)]
struct PatchConvolution {
    convolution: Convolution,
    norm: LayerNorm,
    prenorm: bool,
}

impl PatchConvolution {
    fn load(weights: &mut WeightLoader, name: &str, sizes: &StageSizes) -> Self {
        let shape = [sizes.width, sizes.inputs, sizes.patch, sizes.patch];
        let normed = if sizes.prenorm { sizes.inputs } else { sizes.width };
        Self {
            convolution: Convolution::load(
                weights,
                &format!("{name}.conv"),
                shape,
                sizes.stride,
                sizes.padding,
            ),
            norm: LayerNorm::load(weights, &format!("{name}.norm"), normed, EPS),
            prenorm: sizes.prenorm,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        if self.prenorm {
            self.convolution.forward(&self.norm.forward(x))
        } else {
            self.norm.forward(&self.convolution.forward(x))
        }
    }
}

/// The dimension that a half of a block attends over.
#[derive(Debug, Clone, Copy)]
enum Mixing {
    /// The tokens of each square window, as in `Florence2VisionWindowAttention`.
    Window { heads: i64, side: i64 },
    /// The channels of each group, as in `Florence2VisionChannelAttention`.
    Channels { groups: i64 },
}

/// A half of a block: depthwise convolution, attention, depthwise convolution and MLP, each with a residual,
/// as in `Florence2VisionSpatialBlock` and `Florence2VisionChannelBlock`.
#[derive(Debug)]
struct HalfBlock {
    convolution1: Convolution,
    norm1: LayerNorm,
    mixing: Mixing,
    /// The maps of query, key and value in one.
    inputs: Linear,
    projection: Linear,
    convolution2: Convolution,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl HalfBlock {
    fn load(
        weights: &mut WeightLoader,
        block: &str,
        config: &VisionConfig,
        sizes: &StageSizes,
        mixing: Mixing,
    ) -> Self {
        let (name, attention) = match mixing {
            Mixing::Window { .. } => (format!("{block}.spatial_block"), "window_attn"),
            Mixing::Channels { .. } => (format!("{block}.channel_block"), "channel_attn"),
        };
        let width = sizes.width;
        let mut linear = |part: String, inputs: i64, outputs: i64, bias: bool| {
            Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, bias)
        };
        Self {
            inputs: linear(format!("{attention}.qkv"), width, 3 * width, config.qkv_bias),
            projection: linear(format!("{attention}.proj"), width, width, true),
            fc1: linear("ffn.fc1".to_owned(), width, sizes.inner, true),
            fc2: linear("ffn.fc2".to_owned(), sizes.inner, width, true),
            convolution1: Convolution::depthwise(weights, &format!("{name}.conv1"), width),
            norm1: LayerNorm::load(weights, &format!("{name}.norm1"), width, EPS),
            convolution2: Convolution::depthwise(weights, &format!("{name}.conv2"), width),
            norm2: LayerNorm::load(weights, &format!("{name}.norm2"), width, EPS),
            activation: config.activation_function,
            mixing,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let x = self.convolution1.forward(x) + x;
        let normed = self.norm1.forward(&x);
        let mixed = match self.mixing {
            Mixing::Window { heads, side } => self.over_windows(&normed, heads, side),
            Mixing::Channels { groups } => self.over_channels(&normed, groups),
        };
        let x = x + mixed;
        let x = self.convolution2.forward(&x) + &x;
        let inner = self.activation.forward(&self.fc1.forward(&self.norm2.forward(&x)));
        let added = self.fc2.forward(&inner);
        x + added
    }

    /// Attends within windows. Rows and columns are padded to whole windows with zeros, after the norm and
    /// without a mask: the padding is attended to, and contributes through the bias of keys and values.
    fn over_windows(&self, x: &Tensor, heads: i64, side: i64) -> Tensor {
        let (batch, height, width, channels) = size4(x);
        let (rows, columns) = ((height + side - 1) / side, (width + side - 1) / side);
        let windows = x
            .constant_pad_nd([0, 0, 0, columns * side - width, 0, rows * side - height])
            .view([batch, rows, side, columns, side, channels])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch * rows * columns, side * side, channels]);
        let inputs = self.inputs.forward(&windows).chunk(3, -1);
        let [query, key, value] = [0, 1, 2].map(|index| split_heads(&inputs[index], heads));
        let attended = self.projection.forward(&attention(&query, &key, &value, None));
        attended
            .view([batch, rows, columns, side, side, channels])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([batch, rows * side, columns * side, channels])
            .narrow(1, 0, height)
            .narrow(2, 0, width)
    }

    /// Attends across channels: each channel of a group attends to the group's others, with all tokens as its
    /// vector and a scale of tokens^−½.
    fn over_channels(&self, x: &Tensor, groups: i64) -> Tensor {
        let (batch, height, width, channels) = size4(x);
        let tokens = height * width;
        let inputs = self.inputs.forward(x).view([batch, tokens, 3, groups, channels / groups]);
        // The shape of each is now [batch, groups, tokens, channels of a group].
        let inputs = inputs.permute([2, 0, 3, 1, 4]);
        // The query is scaled before the product: in fp16 the sum over all tokens could overflow.
        let query = inputs.get(0) * (tokens as f64).powf(-0.5);
        let (key, value) = (inputs.get(1), inputs.get(2));
        let shares = query.transpose(2, 3).matmul(&key).softmax(-1, None::<Kind>);
        let mixed = value.matmul(&shares.transpose(2, 3));
        self.projection.forward(&mixed.permute([0, 2, 1, 3]).reshape([batch, height, width, channels]))
    }
}
