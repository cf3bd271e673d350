//! The map from the tensor names of transformers, which this code uses, to those of microsoft's files.

/// The name of the tensor that microsoft's files not only name but also lay out differently: [tower, text],
/// the transpose of the other layout's `image_projection.weight`.
pub(super) const MICROSOFT_PROJECTION: &str = "image_projection";

const LANGUAGE: &str = "model.language_model.";
const PROJECTOR: &str = "model.multi_modal_projector.";
const CONVOLUTIONS: &str = "model.vision_tower.convs.";
const BLOCKS: &str = "model.vision_tower.blocks.";

/// The parts after `…_block.` in transformers' names and in microsoft's; `*` is `window_attn` or
/// `channel_attn`.
const IN_BLOCK: [(&str, &str); 6] = [
    ("conv1.", "conv1.fn.dw."),
    ("conv2.", "conv2.fn.dw."),
    ("*.", "*.fn."),
    ("norm1.", "*.norm."),
    ("norm2.", "ffn.norm."),
    ("ffn.", "ffn.fn.net."),
];

/// Returns the name in microsoft's files of a tensor of transformers' `Florence2ForConditionalGeneration`.
pub(super) fn microsoft(name: &str) -> String {
    if let Some(rest) = name.strip_prefix(LANGUAGE) {
        return format!("language_model.model.{rest}");
    }
    if let Some(rest) = name.strip_prefix(PROJECTOR) {
        return rest.replace("image_position_embed", "image_pos_embed");
    }
    if let Some(rest) = name.strip_prefix(CONVOLUTIONS) {
        return format!("vision_tower.convs.{}", rest.replace(".conv.", ".proj."));
    }
    if let Some(rest) = name.strip_prefix(BLOCKS) {
        return format!("vision_tower.blocks.{}", in_block(rest));
    }
    match name {
        "lm_head.weight" | "final_logits_bias" => format!("language_model.{name}"),
        _ => name.to_owned(),
    }
}

fn in_block(name: &str) -> String {
    let Some((block, part)) = name.split_once("_block.") else { return name.to_owned() };
    let attention = if block.ends_with("spatial") { "window_attn" } else { "channel_attn" };
    for (native, microsoft) in IN_BLOCK {
        if let Some(rest) = part.strip_prefix(&native.replace('*', attention)) {
            return format!("{block}_block.{}{rest}", microsoft.replace('*', attention));
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::microsoft;

    #[test]
    fn names_become_those_of_microsoft() {
        let block = "vision_tower.blocks.2.8.";
        for (native, expected) in [
            ("model.language_model.shared.weight", "language_model.model.shared.weight".to_owned()),
            ("final_logits_bias", "language_model.final_logits_bias".to_owned()),
            ("model.multi_modal_projector.image_proj_norm.bias", "image_proj_norm.bias".to_owned()),
            (
                "model.multi_modal_projector.image_position_embed.row_embeddings.weight",
                "image_pos_embed.row_embeddings.weight".to_owned(),
            ),
            ("model.vision_tower.convs.1.conv.weight", "vision_tower.convs.1.proj.weight".to_owned()),
            ("model.vision_tower.convs.1.norm.weight", "vision_tower.convs.1.norm.weight".to_owned()),
            ("spatial_block.conv2.bias", format!("{block}spatial_block.conv2.fn.dw.bias")),
            ("spatial_block.norm1.bias", format!("{block}spatial_block.window_attn.norm.bias")),
            ("channel_block.norm1.bias", format!("{block}channel_block.channel_attn.norm.bias")),
            ("channel_block.channel_attn.qkv.bias", format!("{block}channel_block.channel_attn.fn.qkv.bias")),
            ("channel_block.norm2.weight", format!("{block}channel_block.ffn.norm.weight")),
            ("spatial_block.ffn.fc1.weight", format!("{block}spatial_block.ffn.fn.net.fc1.weight")),
        ] {
            let native =
                if native.contains("_block.") { format!("model.{block}{native}") } else { native.to_owned() };
            assert_eq!(microsoft(&native), expected);
        }
    }
}
