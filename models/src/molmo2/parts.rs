//! The image side and the decoder, each by itself.

use tch::{Kind, Tensor};

use super::text::Writing;
use super::{Images, Molmo2, tiles_of};
use crate::decoder::{Decoder, KvCache};
use crate::part::{IMAGE_FEATURES, Part};
use crate::{ModelError, Pixels};

/// A question about a picture of 640 × 480 pixels has nearly as many.
const PROMPT_TOKENS: usize = 800;
/// Any token of a text.
const TEXT: i64 = 0;

/// The layout of the first image is that of all rows; what the text says does not matter to the time that it takes.
pub(super) fn parts<'a>(
    model: &'a Molmo2,
    images: &[&Pixels],
    new_tokens: usize,
) -> Result<Vec<Part<'a>>, ModelError> {
    let Some(first) = images.first() else { return Ok(Vec::new()) };
    let (rows, device) = (images.len() as i64, model.place.device);
    let input = Images::new(images)?;
    let input =
        Images { patches: input.patches.f_to_device(device)?, pooling: input.pooling.f_to_device(device)? };

    let mut ids = Vec::new();
    model.prompter.extend_with_image(&mut ids, tiles_of(first)?.grid);
    let room = model.check_length(0)?.saturating_sub(new_tokens);
    ids.resize(PROMPT_TOKENS.min(room).max(ids.len()), TEXT);
    model.check_length(ids.len() + new_tokens)?;
    let prompt_tokens = Some(ids.len());
    let embeddings = model.embed(&ids, rows, None);

    let (copy, prompt) = (embeddings.shallow_clone(), ids.clone());
    let prefill = move || {
        let mut cache = KvCache::new(model.text.layers());
        let state = model.read(&prompt, copy.shallow_clone(), Some(&mut cache), &mut |_| {});
        Ok(model.text.next_logits(&state))
    };
    let write = move || {
        let mut writing = Writing { model: &model.text, cache: KvCache::new(model.text.layers()) };
        let state = model.read(&ids, embeddings.shallow_clone(), Some(&mut writing.cache), &mut |_| {});
        Ok(write_tokens(&mut writing, model.text.next_logits(&state), new_tokens))
    };
    Ok(vec![
        Part::new(IMAGE_FEATURES, move || Ok(model.image_features(&input))),
        Part { prompt_tokens, ..Part::new("decoder: prefill", prefill) },
        Part {
            prompt_tokens,
            new_tokens: Some(new_tokens),
            ..Part::new(format!("decoder: prefill and {new_tokens} tokens greedy"), write)
        },
    ])
}

/// The most probable tokens of every row, none of which ends it; each is looked at, as one who shows a text must.
fn write_tokens(writer: &mut dyn Decoder, mut logits: Tensor, count: usize) -> Tensor {
    for index in 0..count {
        let next = logits.argmax(-1, true).to_kind(Kind::Int64);
        let _token = next.int64_value(&[0, 0]);
        if index + 1 < count {
            logits = writer.step(&next);
        }
    }
    logits
}
