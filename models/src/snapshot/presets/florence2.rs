//! Presets of Florence-2, in the layout of florence-community.

use serde_json::json;

use super::{Files, words};

/// The sizes that differ between the presets; [`files`] has everything that they share.
#[derive(Debug)]
pub(super) struct Sizes {
    width: i64,
    layers: i64,
    heads: i64,
    positions: i64,
    /// The channels of the image tower's stages.
    channels: [i64; 4],
    groups: [i64; 4],
    depths: [i64; 4],
    window: i64,
    side: i64,
    vocabulary: u32,
}

pub(super) const BASE: Sizes = Sizes {
    width: 768,
    layers: 6,
    heads: 12,
    positions: 1024,
    channels: [128, 256, 512, 1024],
    groups: [4, 8, 16, 32],
    depths: [1, 1, 9, 1],
    window: 12,
    side: 768,
    vocabulary: 51_289,
};
pub(super) const LARGE: Sizes = Sizes {
    width: 1024,
    layers: 12,
    heads: 16,
    positions: 4096,
    channels: [256, 512, 1024, 2048],
    groups: [8, 16, 32, 64],
    ..BASE
};
pub(super) const TINY: Sizes = Sizes {
    width: 32,
    layers: 2,
    heads: 4,
    positions: 128,
    channels: [16, 24, 32, 48],
    groups: [2, 3, 4, 6],
    depths: [1, 1, 2, 1],
    window: 4,
    side: 96,
    vocabulary: 1389,
};

/// The number of location tokens in the vocabulary.
const LOCATIONS: u32 = 1000;
/// The number of tokens that follow the location tokens in the vocabulary.
const AFTER_LOCATIONS: u32 = 20;
/// The published embedding table is padded to a multiple of this.
const TABLE_MULTIPLE: u32 = 64;

/// Returns the files of a Florence-2 snapshot of these sizes, without weights.
pub(super) fn files(sizes: &Sizes) -> Files {
    let vocabulary = sizes.vocabulary;
    let rows = (vocabulary + 1).next_multiple_of(TABLE_MULTIPLE);
    let config = json!({
        "model_type": "florence2", "image_token_id": vocabulary, "tie_word_embeddings": true,
        "text_config": {
            "model_type": "bart", "vocab_size": rows, "d_model": sizes.width,
            "encoder_layers": sizes.layers, "decoder_layers": sizes.layers,
            "encoder_attention_heads": sizes.heads, "decoder_attention_heads": sizes.heads,
            "encoder_ffn_dim": 4 * sizes.width, "decoder_ffn_dim": 4 * sizes.width,
            "max_position_embeddings": sizes.positions, "activation_function": "gelu",
        },
        "vision_config": {
            "model_type": "florence_vision", "depths": sizes.depths, "embed_dim": sizes.channels,
            "num_heads": sizes.groups, "num_groups": sizes.groups, "window_size": sizes.window,
            "projection_dim": sizes.width,
        },
    });
    let preprocessor = json!({
        "image_processor_type": "CLIPImageProcessor", "size": {"height": sizes.side, "width": sizes.side},
        "do_center_crop": false, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    });
    // Every text must have exactly the requested length: the end token is improbable, and nothing is forced
    // at the end.
    let generation = json!({
        "num_beams": 1, "no_repeat_ngram_size": 0, "decoder_start_token_id": 2, "eos_token_id": 2,
        "forced_bos_token_id": 0,
    });
    let first_location = vocabulary - AFTER_LOCATIONS - LOCATIONS;
    let mut special =
        words::special([("<s>", 0), ("<pad>", 1), ("</s>", 2), ("<unk>", 3), ("<image>", vocabulary)]);
    special.extend((0..LOCATIONS).map(|bin| (format!("<loc_{bin}>"), first_location + bin)));
    vec![
        super::json("config.json", &config),
        super::json("preprocessor_config.json", &preprocessor),
        super::json("generation_config.json", &generation),
        super::json("tokenizer.json", &words::tokenizer(&special, 4)),
    ]
}
