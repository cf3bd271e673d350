//! The generation of texts and regions for a task token, by beam search as the snapshot configures it.

use std::ops::ControlFlow;

use serde::Deserialize;

use super::Florence2;
use super::bart::Memory;
use super::decoding::{BartDecoder, GreedyText, Step};
use super::network::{BEGIN, END};
use super::prompt;
use super::regions::regions;
use crate::generation::beam::{BeamSettings, beam_search};
use crate::generation::greedy::{BufferShape, Greedy, GreedyOutput};
use crate::generation::static_cache::capacity_for;
use crate::image::preprocess::stack;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::limits::in_range;
use crate::{GenerateRequest, Generated, Generator, ModelError, Pixels};

const FILE: &str = "generation_config.json";
/// The most beams, each of which holds its keys and values; the published snapshots have 3.
const BEAMS_MAX: i64 = 64;
const NGRAM_MAX: i64 = 1024;

/// The contents of `generation_config.json`; the defaults are those of transformers' `GenerationConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    num_beams: Option<i64>,
    no_repeat_ngram_size: Option<i64>,
    early_stopping: Option<bool>,
    length_penalty: Option<f64>,
    decoder_start_token_id: Option<i64>,
    eos_token_id: Option<i64>,
    forced_bos_token_id: Option<i64>,
    forced_eos_token_id: Option<i64>,
}

impl GenerationConfig {
    /// Returns the settings of the published snapshots.
    fn published() -> Self {
        Self {
            num_beams: Some(3),
            no_repeat_ngram_size: Some(3),
            early_stopping: Some(true),
            forced_bos_token_id: Some(BEGIN),
            forced_eos_token_id: Some(END),
            ..Self::default()
        }
    }

    fn settings(&self, vocabulary: i64) -> Result<BeamSettings, String> {
        let (beams, ngram) = (self.num_beams.unwrap_or(1), self.no_repeat_ngram_size.unwrap_or(0));
        in_range("num_beams", beams, 1..=BEAMS_MAX)?;
        in_range("no_repeat_ngram_size", ngram, 0..=NGRAM_MAX)?;
        let length_penalty = self.length_penalty.unwrap_or(1.0);
        if !length_penalty.is_finite() {
            return Err(format!("length_penalty {length_penalty} must be a number"));
        }
        let start = self.decoder_start_token_id.unwrap_or(END);
        let end = self.eos_token_id.unwrap_or(END);
        let forced = [self.forced_bos_token_id, self.forced_eos_token_id];
        for id in [start, end].into_iter().chain(forced.into_iter().flatten()) {
            in_range("a token id", id, 0..=vocabulary - 1)?;
        }
        Ok(BeamSettings {
            num_beams: usize::try_from(beams).unwrap_or(1),
            no_repeat_ngram_size: usize::try_from(ngram).unwrap_or(0),
            // A single beam is greedy search, which ends with the text.
            early_stopping: beams == 1 || self.early_stopping.unwrap_or(false),
            length_penalty,
            decoder_start_token_id: start,
            eos_token_id: end,
            forced_bos_token_id: self.forced_bos_token_id,
            forced_eos_token_id: self.forced_eos_token_id,
        })
    }
}

/// Returns the settings of the snapshot's beam search.
///
/// # Errors
/// Fails when `generation_config.json` is malformed or a setting is out of its range.
pub(super) fn beam_settings(snapshot: &Snapshot, vocabulary: i64) -> Result<BeamSettings, ModelError> {
    let path = snapshot.path(FILE);
    let config = if path.exists() { snapshot.json(FILE)? } else { GenerationConfig::published() };
    config.settings(vocabulary).map_err(|message| ModelError::malformed(&path, message))
}

/// Returns the phrases of captions that ground nothing, from the processor's own list where the snapshot has
/// one.
pub(super) fn banned_phrases(snapshot: &Snapshot) -> Result<Vec<String>, ModelError> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Processor {
        post_processor_config: Option<PostProcessor>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct PostProcessor {
        phrase_grounding: Grounding,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Grounding {
        banned_grounding_tokens: Vec<String>,
    }
    const FILE: &str = "processor_config.json";
    if !snapshot.path(FILE).exists() {
        return Ok(Vec::new());
    }
    let processor: Processor = snapshot.json(FILE)?;
    Ok(processor.post_processor_config.unwrap_or_default().phrase_grounding.banned_grounding_tokens)
}

impl Florence2 {
    /// Generates the text of a search with a single beam, its end included: the most probable token each
    /// time, except for those that are forced.
    pub(super) fn write_one(&self, memory: &Memory, most: usize) -> Result<Vec<i64>, ModelError> {
        let BeamSettings { decoder_start_token_id, eos_token_id, .. } = self.beams;
        let forced_last = most.checked_sub(1).and_then(|written| self.beams.forced(written, most));
        let free = if forced_last.is_some() { most - 1 } else { most };
        let greedy = Greedy {
            ends: &[eos_token_id],
            max_new_tokens: free,
            steps_per_read: 1,
            graphs: self.graphs.is_on(),
        };
        let forced_first = self.beams.forced(0, most).filter(|_| free > 0);
        let mut written = self.write_greedily(memory, decoder_start_token_id, forced_first, &greedy)?;
        written.tokens.extend(if written.ended { Some(eos_token_id) } else { forced_last });
        Ok(written.tokens)
    }

    /// Generates greedily after the token `start`, the first token being `forced_first` if there is one.
    pub(super) fn write_greedily(
        &self,
        memory: &Memory,
        start: i64,
        forced_first: Option<i64>,
        greedy: &Greedy,
    ) -> Result<GreedyOutput, ModelError> {
        let bart = &self.network.bart;
        let source = memory.layers.first().map_or(0, |(keys, _)| keys.size()[2]);
        let positions = i64::try_from(greedy.max_new_tokens).unwrap_or(i64::MAX).min(self.network.positions);
        let shape = BufferShape { capacity: capacity_for(positions), source };
        let new = || GreedyText::new(bart, shape.capacity, memory);
        self.writings.with(shape, new, |writing| {
            writing.begin(memory, start);
            let step = Step { bart, writing };
            greedy.step(&step)?;
            if let Some(token) = forced_first {
                writing.buffers.force(1, token);
            }
            greedy.run(&step, 1, &mut |_| ControlFlow::Continue(()))
        })
    }
}

impl Generator for Florence2 {
    fn takes_questions(&self) -> bool {
        false
    }

    fn beams(&self) -> usize {
        self.beams.num_beams
    }

    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        let (task, question) = prompt::parse(&request.prompt)?;
        let network = &self.network;
        let prompt = network.prompt(&question)?;
        let features = self.image_features(&stack(&[image], self.info.placement.device))?;
        let memory = network.memory(&self.graphs, &features, &network.ids(&[&prompt])?)?;
        let most = request.max_new_tokens.min(usize::try_from(network.positions).unwrap_or(0));
        let tokens = if self.beams.is_greedy() {
            self.write_one(&memory, most)?
        } else {
            let mut writer = BartDecoder::new(&network.bart, memory);
            beam_search(&mut writer, &self.beams, most, self.info.placement.device)?.tokens
        };
        let text = network.codec.decode_text(&tokens)?;
        // The text is sent whole: until the end, any beam may turn out best. There is nothing left to break
        // off.
        if !text.is_empty() {
            let _flow = on_text(&text);
        }
        let marked = network.codec.decode(&tokens)?;
        Ok(Generated {
            text,
            regions: regions(&marked, task.answer, image.image_size, &self.banned_phrases),
            prompt_tokens: usize::try_from(network.image_tokens).unwrap_or(0) + prompt.len(),
            new_tokens: tokens.len(),
            finished: tokens.len() < most,
        })
    }
}
