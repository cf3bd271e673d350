//! The benchmark targets: the image side and the decoder, each by itself.

use std::ops::ControlFlow;
use std::rc::Rc;

use tch::Tensor;

use super::{Images, Molmo2, tiles_of};
use crate::generation::greedy::Greedy;
use crate::inspect::bench_target::{BenchTarget, IMAGE_FEATURES};
use crate::{ModelError, Pixels};

/// The length of the prompt: a question about an image of 640 × 480 pixels has nearly as many tokens.
const PROMPT_TOKENS: usize = 800;
/// The id of some token of a text.
const TEXT: i64 = 0;

/// Returns the benchmark targets for a batch of images. The layout of the first image is that of all rows;
/// the content of the text does not affect the time.
pub(super) fn bench_targets<'a>(
    model: &'a Molmo2,
    images: &[&Pixels],
    new_tokens: usize,
) -> Result<Vec<BenchTarget<'a>>, ModelError> {
    let Some(first) = images.first() else { return Ok(Vec::new()) };
    let (rows, device) = (images.len() as i64, model.info.placement.device);
    let input = Images::new(images)?;
    let input =
        Images { patches: input.patches.f_to_device(device)?, pooling: input.pooling.f_to_device(device)? };

    let mut ids = Vec::new();
    model.prompter.extend_with_image(&mut ids, tiles_of(first)?.grid);
    let room = model.check_length(0)?.saturating_sub(new_tokens);
    ids.resize(PROMPT_TOKENS.min(room).max(ids.len()), TEXT);
    model.check_length(ids.len() + new_tokens)?;
    let prompt_tokens = Some(ids.len());
    let (length, reading) = (ids.len(), model.reading(&ids, &model.embed(&ids, rows, None)));
    let reading = Rc::new(reading);
    let same = Rc::clone(&reading);
    let prefill = move || model.next_logits(&same);
    let write = move || {
        // Each token is read back at once, as streaming needs it, and none ends the text.
        let greedy =
            Greedy { ends: &[], max_new_tokens: new_tokens, steps_per_read: 1, graphs: model.graphs.is_on() };
        let written = model.write(&reading, length, &greedy, &mut |_| ControlFlow::Continue(()))?;
        Ok(Tensor::from_slice(&written.tokens))
    };
    let mut parts = vec![
        BenchTarget::new(IMAGE_FEATURES, move || model.image_features(&input)),
        BenchTarget { prompt_tokens, ..BenchTarget::new("decoder: prefill", prefill) },
    ];
    // A text is generated for one row only.
    if rows == 1 {
        let work = format!("decoder: prefill and {new_tokens} tokens greedy");
        parts.push(BenchTarget {
            prompt_tokens,
            new_tokens: Some(new_tokens),
            ..BenchTarget::new(work, write)
        });
    }
    Ok(parts)
}
