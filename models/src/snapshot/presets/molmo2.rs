//! Presets of Molmo 2, with the key names of the published files.

use serde_json::{Value, json};

use super::{Files, words};

/// The sizes that differ between the presets; [`files`] has everything that they share.
#[derive(Debug)]
pub(super) struct Sizes {
    text: Text,
    vision: Vision,
}

#[derive(Debug)]
struct Text {
    hidden: i64,
    intermediate: i64,
    layers: i64,
    heads: i64,
    key_heads: i64,
    head_width: i64,
    theta: f64,
    vocabulary: u32,
}

#[derive(Debug)]
struct Vision {
    hidden: i64,
    intermediate: i64,
    layers: i64,
    heads: i64,
    /// The side of a crop, in pixels.
    side: i64,
    /// The side of a patch, in pixels.
    patch: i64,
    features: [i64; 2],
    max_crops: i64,
    /// The margin on each side of a crop, in patches.
    margin: i64,
}

const PUBLISHED_VISION: Vision = Vision {
    hidden: 1152,
    intermediate: 4304,
    layers: 27,
    heads: 16,
    side: 378,
    patch: 14,
    features: [-3, -9],
    max_crops: 8,
    margin: 4,
};
pub(super) const SIZE_4B: Sizes = Sizes {
    text: Text {
        hidden: 2560,
        intermediate: 9728,
        layers: 36,
        heads: 32,
        key_heads: 8,
        head_width: 128,
        theta: 5e6,
        vocabulary: 151_936,
    },
    vision: PUBLISHED_VISION,
};
pub(super) const SIZE_8B: Sizes = Sizes {
    text: Text { hidden: 4096, intermediate: 12_288, theta: 1e6, ..SIZE_4B.text },
    vision: PUBLISHED_VISION,
};
pub(super) const TINY: Sizes = Sizes {
    text: Text {
        hidden: 48,
        intermediate: 80,
        layers: 3,
        heads: 6,
        key_heads: 2,
        head_width: 16,
        theta: 1e6,
        vocabulary: 512,
    },
    vision: Vision {
        hidden: 32,
        intermediate: 48,
        layers: 5,
        heads: 4,
        side: 70,
        features: [-3, -4],
        max_crops: 6,
        margin: 1,
        ..PUBLISHED_VISION
    },
};

const CHAT_TEMPLATE: &[u8] = include_bytes!("molmo2_chat_template.jinja");
/// The image tokens, whose ids follow the base vocabulary in this order.
const IMAGE_TOKENS: [&str; 9] = [
    "<im_start>",
    "<im_end>",
    "<im_patch>",
    "<im_col>",
    "<low_res_im_start>",
    "<|image|>",
    "<im_low>",
    "<frame_start>",
    "<frame_end>",
];
/// The index of `<im_patch>` in [`IMAGE_TOKENS`].
const PATCH: u32 = 2;

/// Returns the files of a Molmo 2 snapshot of these sizes, without weights.
pub(super) fn files(sizes: &Sizes) -> Files {
    let vocabulary = sizes.text.vocabulary;
    let config = json!({
        "model_type": "molmo2", "image_patch_id": vocabulary + PATCH,
        "vit_config": vision(&sizes.vision), "adapter_config": adapter(sizes), "text_config": text(&sizes.text),
    });
    let Vision { side, patch, max_crops, margin, .. } = sizes.vision;
    let preprocessor = json!({
        "image_processor_type": "Molmo2ImageProcessor", "size": {"height": side, "width": side}, "resample": 2,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "patch_size": patch,
        "pooling_size": [2, 2], "max_crops": max_crops, "overlap_margins": [margin, margin],
    });
    let layout = json!({
        "image_use_col_tokens": true, "use_single_crop_col_tokens": false, "use_single_crop_start_token": true,
    });
    // The end of the base vocabulary has as many special tokens as the published one.
    let end = vocabulary - 291;
    let mut special = words::special([
        ("<unk>", 0),
        ("<|endoftext|>", end - 2),
        ("<|im_start|>", end - 1),
        ("<|im_end|>", end),
    ]);
    special.extend((vocabulary..).zip(IMAGE_TOKENS).map(|(id, token)| (token.to_owned(), id)));
    vec![
        super::json("config.json", &config),
        super::json("preprocessor_config.json", &preprocessor),
        super::json("processor_config.json", &layout),
        // There is no end token, so that every text has the requested length.
        super::json("generation_config.json", &json!({ "eos_token_id": [] })),
        super::json(
            "tokenizer_config.json",
            &json!({ "bos_token": "<|im_end|>", "eos_token": "<|im_end|>" }),
        ),
        super::json("tokenizer.json", &words::tokenizer(&special, 1)),
        ("chat_template.jinja", CHAT_TEMPLATE.to_vec()),
    ]
}

fn vision(sizes: &Vision) -> Value {
    let patches = (sizes.side / sizes.patch).pow(2);
    json!({
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads, "head_dim": sizes.hidden / sizes.heads,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        "image_default_input_size": [sizes.side, sizes.side], "image_patch_size": sizes.patch,
        "image_num_pos": patches,
    })
}

fn adapter(sizes: &Sizes) -> Value {
    let (text, vision) = (&sizes.text, &sizes.vision);
    json!({
        "vit_layers": vision.features, "hidden_size": vision.hidden, "num_attention_heads": vision.heads,
        "num_key_value_heads": vision.heads, "head_dim": vision.hidden / vision.heads, "hidden_act": "silu",
        "intermediate_size": text.intermediate, "text_hidden_size": text.hidden,
    })
}

fn text(sizes: &Text) -> Value {
    json!({
        "hidden_size": sizes.hidden, "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.key_heads, "head_dim": sizes.head_width, "hidden_act": "silu",
        "vocab_size": sizes.vocabulary, "additional_vocab_size": 128, "max_position_embeddings": 36_864,
        "layer_norm_eps": 1e-6, "qk_norm_type": "qwen3", "norm_after": false, "rope_theta": sizes.theta,
    })
}
