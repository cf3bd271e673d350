//! Florence-2: one encoder-decoder for captions, texts, boxes and labels, selected by a task token; knows
//! no other architecture.
//!
//! The source is Xiao et al., "Florence-2", 2023 (arXiv 2311.06242). Tensor names and numerics follow
//! transformers' `modeling_florence2.py`. Snapshots of florence-community and of microsoft are both
//! supported.

mod bart;
mod blocks;
mod config;
mod davit;
mod decoding;
mod detect;
mod generate;
mod likelihood;
mod names;
mod network;
mod parity_outputs;
mod projector;
mod prompt;
mod regions;
#[cfg(test)]
mod tests;
mod text;

use std::collections::{BTreeMap, HashMap};

use concord_policy::ModelOutput;
use tch::Tensor;

use crate::architectures::architecture::{Architecture, Capability};
use crate::generation::beam::BeamSettings;
use crate::generation::greedy::BufferPool;
use crate::image::preprocess::{Pixels, Preprocessor, stack};
use crate::inspect::bench_target::{BenchTarget, IMAGE_FEATURES};
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::options::{ModelOptions, OptionKind, OptionSpec};
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};
use crate::{Generator, ModelError};
use bart::Bart;
use config::Config;
use davit::Tower;
use decoding::GreedyText;
use detect::Phrases;
use likelihood::Captions;
use network::Network;
use projector::Projector;
use text::TextCodec;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "florence2",
    model_types: &["florence2"],
    capabilities: &[Capability::Generate],
    options: &[MODE],
    fp8: &[],
    load,
};

/// The names of [`Mode`]; an empty text selects the first.
const MODES: &[&str] = &["likelihood", "detect"];
const MODE: OptionSpec = OptionSpec {
    name: "mode",
    kind: OptionKind::Choice { what: "a mode", values: MODES, default: "" },
    doc: "How labels are voted on: likelihood (how probable each label's prompts are as captions; the default) or detect \
          (whether the prompts of each label but the first are found in the image, and where).",
};

/// The way that labels are voted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The probability of each label's prompts as captions.
    Likelihood,
    /// The search for each label's phrases in the image.
    Detect,
}

impl Mode {
    fn of(options: &ModelOptions) -> Self {
        if options.own.choice(&MODE) == MODES[1] { Self::Detect } else { Self::Likelihood }
    }
}

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    Ok(Box::new(Florence2::load(snapshot, options, place)?))
}

impl Florence2 {
    fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Self, ModelError> {
        let mode = Mode::of(options);
        let config: Config = snapshot.json("config.json")?;
        let malformed = |message: String| ModelError::malformed(&snapshot.path("config.json"), message);
        config.check().map_err(malformed)?;
        let preprocessor = Preprocessor::load(snapshot)?;
        let image_tokens = image_tokens(&config, &preprocessor).map_err(malformed)?;
        let (text, vision) = (&config.text_config, &config.vision_config);
        let codec = TextCodec::load(snapshot, text.vocab_size)?;
        let beams = generate::beam_settings(snapshot, text.vocab_size)?;

        let mut weights = snapshot.weights(place)?;
        let is_microsoft = weights.has(names::MICROSOFT_PROJECTION);
        if is_microsoft {
            weights.rename(names::microsoft);
        }
        let network = Network {
            tower: Tower::load(&mut weights, vision),
            projector: Projector::load(&mut weights, vision, is_microsoft),
            bart: Bart::load(&mut weights, text, config.tie_word_embeddings),
            codec,
            image_tokens,
            positions: text.max_position_embeddings,
            pads_sources: place.device.is_cuda(),
        };
        Ok(Self {
            network,
            beams,
            banned_phrases: generate::banned_phrases(snapshot)?,
            image_token_id: config.image_token_id,
            mode,
            info: LoadedModelInfo { parameters: weights.finish()?, preprocessor, placement: place },
            tasks: HashMap::new(),
            writings: BufferPool::new(),
            graphs: options.cuda_graphs(place),
        })
    }
}

/// Returns the number of tokens that an image becomes: the mean, and one for each position that the tower
/// makes.
fn image_tokens(config: &Config, preprocessor: &Preprocessor) -> Result<i64, String> {
    let (height, width) =
        preprocessor.fixed_size().ok_or("preprocessor_config.json does not give images of one size")?;
    let [rows, columns] = config.vision_config.grid(height, width)?;
    let (tokens, positions) = (1 + rows * columns, config.text_config.max_position_embeddings);
    if tokens < positions {
        return Ok(tokens);
    }
    Err(format!("images of {height} × {width} give {tokens} tokens: the encoder has {positions} positions"))
}

/// A loaded Florence-2 and the tasks that are prepared for it.
#[derive(Debug)]
struct Florence2 {
    network: Network,
    beams: BeamSettings,
    /// The phrases of captions that ground nothing.
    banned_phrases: Vec<String>,
    /// The id that stands for the image in the ids of a prompt. The networks never look it up.
    image_token_id: i64,
    mode: Mode,
    info: LoadedModelInfo,
    tasks: HashMap<TaskId, Prepared>,
    /// The buffers of texts that are generated greedily.
    writings: BufferPool<GreedyText>,
    /// The CUDA graphs of the image side, the encoder and the votes by likelihood.
    graphs: CudaGraphCache,
}

/// A task that is prepared for the model's mode.
#[derive(Debug)]
enum Prepared {
    Likelihood(Captions),
    Detect(Phrases),
}

impl Florence2 {
    /// Returns the image tokens of the text model, [images, tokens, hidden], for pixels
    /// [images, 3, height, width].
    fn image_features(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let outputs =
            self.graphs.run(&[pixels], &[], |inputs| vec![self.network.image_features(&inputs[0])])?;
        outputs.into_iter().next().ok_or(ModelError::NotPrepared)
    }

    /// Returns the ids of image and prompt as the reference's processor gives them, [1, count].
    fn input_ids(&self, prompt: &[i64]) -> Result<Tensor, ModelError> {
        let mut ids = vec![self.image_token_id; usize::try_from(self.network.image_tokens).unwrap_or(0)];
        ids.extend(prompt);
        Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?)
    }
}

impl Model for Florence2 {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        let prepared = match self.mode {
            Mode::Likelihood => Prepared::Likelihood(Captions::new(&self.network, task)?),
            Mode::Detect => Prepared::Detect(Phrases::new(&self.network, task)?),
        };
        self.tasks.insert(id, prepared);
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        let prepared = self.tasks.get(&id).ok_or(ModelError::NotPrepared)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let features = self.image_features(&stack(images, self.info.placement.device))?;
        match prepared {
            Prepared::Likelihood(captions) => captions.scores(&self.network, &self.graphs, &features),
            Prepared::Detect(phrases) => phrases.scores(&self.network, &self.graphs, &features, images),
        }
    }

    fn generator(&self) -> Option<&dyn Generator> {
        Some(self)
    }

    fn bench_targets(&self, images: &[&Pixels], _: usize) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        let pixels = stack(images, self.info.placement.device);
        Ok(vec![BenchTarget::new(IMAGE_FEATURES, move || self.image_features(&pixels))])
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        parity_outputs::parity_outputs(self, fixture)
    }
}
