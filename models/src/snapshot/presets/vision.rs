//! Presets of DINOv3 and SigLIP 2.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::{Files, HEAD, LABELS, words};
use crate::ModelError;

/// A transformer over the patches of images of one size.
#[derive(Debug)]
pub(super) struct Vit {
    hidden: i64,
    intermediate: i64,
    layers: i64,
    heads: i64,
    patch: i64,
    /// The side of the images, in pixels.
    side: i64,
}

const fn vit(hidden: i64, intermediate: i64, layers: i64, heads: i64, patch: i64, side: i64) -> Vit {
    Vit { hidden, intermediate, layers, heads, patch, side }
}

pub(super) const VIT_S: Vit = vit(384, 1536, 12, 6, 16, 224);
pub(super) const VIT_B: Vit = vit(768, 3072, 12, 12, 16, 224);
pub(super) const VIT_L: Vit = vit(1024, 4096, 24, 16, 16, 384);
pub(super) const VIT_TINY: Vit = vit(48, 96, 2, 3, 16, 64);
pub(super) const SO400M: Vit = vit(1152, 4304, 27, 16, 14, 384);
pub(super) const SIGLIP_TINY: Vit = vit(48, 80, 2, 4, 14, 60);

/// The number of register tokens of DINOv3.
const REGISTERS: i64 = 4;

/// Returns the files of a DINOv3 snapshot of these sizes with a head, without weights.
pub(super) fn dinov3(sizes: &Vit) -> Result<Files, ModelError> {
    let side = sizes.side;
    let config = json!({
        "model_type": "dinov3_vit", "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_register_tokens": REGISTERS, "patch_size": sizes.patch, "image_size": side,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rope_theta": 100.0,
        "query_bias": true, "key_bias": false, "value_bias": true, "proj_bias": true, "mlp_bias": true,
    });
    let preprocessor = json!({
        "image_processor_type": "DINOv3ViTImageProcessor", "size": {"height": side, "width": side}, "resample": 2,
    });
    Ok(vec![
        super::json("config.json", &config),
        super::json("preprocessor_config.json", &preprocessor),
        (HEAD, head(sizes.hidden)?),
    ])
}

/// Returns the file of a linear head on the CLS token, with arbitrary values.
fn head(hidden: i64) -> Result<Vec<u8>, ModelError> {
    let (labels, hidden) = (LABELS.len(), usize::try_from(hidden).unwrap_or(0));
    let values = |count: usize| -> Vec<u8> {
        (0..count).flat_map(|index| ((index as f32).sin() / 16.0).to_le_bytes()).collect()
    };
    let (weight, bias) = (values(labels * hidden), values(labels));
    let faulty = |error: safetensors::SafeTensorError| ModelError::malformed(HEAD.as_ref(), error);
    let tensors = [
        ("linear.weight", TensorView::new(Dtype::F32, vec![labels, hidden], &weight).map_err(faulty)?),
        ("linear.bias", TensorView::new(Dtype::F32, vec![labels], &bias).map_err(faulty)?),
    ];
    safetensors::serialize(tensors, None).map_err(faulty)
}

/// Returns the files of a SigLIP 2 snapshot of these sizes, without weights.
pub(super) fn siglip2(sizes: &Vit, vocabulary: i64) -> Files {
    let side = sizes.side;
    let both = json!({
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    });
    let (mut text, mut vision) = (both.clone(), both);
    text["vocab_size"] = json!(vocabulary);
    text["max_position_embeddings"] = json!(64);
    text["projection_size"] = json!(sizes.hidden);
    vision["image_size"] = json!(side);
    vision["patch_size"] = json!(sizes.patch);
    let preprocessor = json!({
        "image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}, "resample": 2,
    });
    let special = words::special([("<pad>", 0), ("<eos>", 1), ("<bos>", 2), ("<unk>", 3)]);
    let config = json!({ "model_type": "siglip", "text_config": text, "vision_config": vision });
    vec![
        super::json("config.json", &config),
        super::json("preprocessor_config.json", &preprocessor),
        super::json("tokenizer.json", &words::tokenizer(&special, 4)),
    ]
}
