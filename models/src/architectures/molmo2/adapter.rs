//! The adapter from patches of the image tower to tokens of the text model: attention within small windows,
//! then a gated MLP.

use tch::{Kind, Tensor};

use super::config::Config;
use crate::nn::blocks::Mlp;
use crate::nn::layers::{Linear, attention, split_heads};
use crate::nn::quantized_linear::QuantLinear;
use crate::snapshot::weights::WeightLoader;

/// The most windows that are pooled at once: a batch dimension in CUDA's attention kernels ends at 65,535.
const WINDOWS_MAX: i64 = 32_768;

/// The adapter's weights: multi-head attention, then a gated MLP.
#[derive(Debug)]
pub(super) struct Adapter {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: i64,
    projector: Mlp,
}

impl Adapter {
    pub(super) fn load(weights: &mut WeightLoader, name: &str, config: &Config) -> Self {
        let adapter = &config.adapter_config;
        let (patch, inner) = (config.feature_width(), adapter.num_attention_heads * adapter.head_dim);
        let (hidden, wide) = (adapter.hidden_size, adapter.intermediate_size);
        let mut linear = |part: &str, inputs, outputs, bias| {
            Linear::load(weights, &format!("{name}.{part}"), inputs, outputs, bias)
        };
        let text = config.text_config.hidden_size;
        Self {
            query: linear("image_pooling_2d.wq", patch, inner, adapter.attention_bias),
            key: linear("image_pooling_2d.wk", patch, inner, adapter.attention_bias),
            value: linear("image_pooling_2d.wv", patch, inner, adapter.attention_bias),
            output: linear("image_pooling_2d.wo", inner, hidden, adapter.attention_bias),
            heads: adapter.num_attention_heads,
            projector: Mlp {
                gate: Some(QuantLinear::Plain(linear("image_projector.w1", hidden, wide, adapter.mlp_bias))),
                up: QuantLinear::Plain(linear("image_projector.w3", hidden, wide, adapter.mlp_bias)),
                down: QuantLinear::Plain(linear("image_projector.w2", wide, text, false)),
                activation: adapter.hidden_act,
            },
        }
    }

    /// Turns `features` [patches, layers · hidden] into tokens [tokens, text hidden]. `pooling`
    /// [tokens, window] holds the indices of the patches that each token is made of, with −1 for none.
    pub(super) fn forward(&self, features: &Tensor, pooling: &Tensor) -> Tensor {
        let parts: Vec<Tensor> =
            pooling.split(WINDOWS_MAX, 0).iter().map(|pooling| self.pool(features, pooling)).collect();
        self.projector.forward(&Tensor::cat(&parts, 0))
    }

    /// Pools each window by attention from the mean of its patches to the patches: [tokens, hidden].
    fn pool(&self, features: &Tensor, pooling: &Tensor) -> Tensor {
        let kind = features.kind();
        let present = pooling.ge(0);
        let patches = features.index_select(0, &pooling.clamp_min(0).flatten(0, -1));
        let patches = patches.unflatten(0, pooling.size()) * present.to_kind(kind).unsqueeze(-1);
        let count = present.sum_dim_intlist([-1].as_slice(), true, Kind::Int64).clamp_min(1).to_kind(kind);
        let mean = patches.sum_dim_intlist([1].as_slice(), true, None::<Kind>) / count.unsqueeze(-1);
        let query = split_heads(&self.query.forward(&mean), self.heads);
        let [key, value] =
            [&self.key, &self.value].map(|linear| split_heads(&linear.forward(&patches), self.heads));
        let allowed = present.unsqueeze(1).unsqueeze(1);
        self.output.forward(&attention(&query, &key, &value, Some(&allowed)).squeeze_dim(1))
    }
}
