//! Molmo 2: an image tower over overlapping crops, and a language model that answers questions about
//! them; knows no other architecture.
//!
//! The source is Clark et al., "Molmo2", 2025. Tensor names and numerics follow transformers'
//! `modeling_molmo2.py`.

mod adapter;
mod answers;
mod bench_targets;
mod config;
mod images;
mod parity;
mod prompt;
mod step;
#[cfg(test)]
mod tests;
mod text;
mod vision;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use concord_policy::ModelOutput;
use tch::{Kind, Tensor};

use crate::architectures::architecture::{Architecture, Capability};
use crate::generation::greedy::{BufferPool, BufferShape, Greedy, GreedyOutput};
use crate::generation::static_cache::{capacity_for, padded_length};
use crate::generation::text_stream::TextStream;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::inspect::bench_target::BenchTarget;
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::nn::kv_cache::{GrowingKvCache, KvCache};
use crate::options::ModelOptions;
use crate::output::outputs;
use crate::runtime::cuda_graphs::CudaGraphCache;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};
use crate::{GenerateRequest, Generated, Generator, ModelError};
use adapter::Adapter;
use answers::Answers;
use config::Config;
use images::{ImageSide, Images, tiles_of};
use prompt::{Prompt, Prompter};
use step::{GreedyText, Step};
use text::TextModel;
use vision::VisionTower;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "molmo2",
    model_types: &["molmo2"],
    capabilities: &[Capability::Generate],
    options: &[],
    fp8: &["model.vision_backbone.image_vit.transformer.resblocks.", "model.transformer.blocks."],
    load,
};

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    Ok(Box::new(Molmo2::load(snapshot, options, place)?))
}

impl Molmo2 {
    fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Self, ModelError> {
        let config: Config = snapshot.json("config.json")?;
        let malformed = |message: String| ModelError::malformed(&snapshot.path("config.json"), message);
        config.check().map_err(malformed)?;
        let preprocessor = Preprocessor::load(snapshot)?;
        config.check_preprocessor(&preprocessor).map_err(malformed)?;
        let prompter = Prompter::load(snapshot, &config)?;

        let mut weights = snapshot.weights(place)?;
        let text = TextModel::load(&mut weights, &config.text_config, place.device).map_err(malformed)?;
        let images = ImageSide {
            tower: VisionTower::load(&mut weights, "model.vision_backbone.image_vit", &config),
            adapter: Adapter::load(&mut weights, "model.vision_backbone", &config),
            device: place.device,
        };
        Ok(Self {
            text,
            images,
            info: LoadedModelInfo { parameters: weights.finish()?, preprocessor, placement: place },
            ends: prompter.ends(snapshot)?,
            prompter,
            config,
            tasks: HashMap::new(),
            pads_prompts: place.device.is_cuda(),
            writings: BufferPool::new(),
            graphs: options.cuda_graphs(place),
        })
    }
}

/// A loaded Molmo 2 and the tasks that are prepared for it.
#[derive(Debug)]
struct Molmo2 {
    config: Config,
    text: TextModel,
    images: ImageSide,
    info: LoadedModelInfo,
    prompter: Prompter,
    /// The tokens that end a text.
    ends: Vec<i64>,
    tasks: HashMap<TaskId, Task>,
    /// True if prompts are padded to a few lengths: CUDA graphs need few shapes, but on a CPU padding is
    /// wasted work.
    pads_prompts: bool,
    /// The buffers of the texts that are being generated.
    writings: BufferPool<GreedyText>,
    /// The CUDA graphs of the image side, and of prompts that are read for votes.
    graphs: CudaGraphCache,
}

/// A prompt in the form that the text model reads, all of it on the device. Where it is padded, embeddings of
/// zeros follow it on the right, and no position before them attends to them.
#[derive(Debug)]
struct Reading {
    /// The embeddings, [rows, padded length, hidden].
    embeddings: Tensor,
    /// The mask of the positions that attend to each other in both directions, \[padded length\].
    of_images: Tensor,
    /// The last position of the prompt without its padding, \[1\].
    last: Tensor,
}

/// The parts of a task that are the same for every image.
#[derive(Debug)]
struct Task {
    prompt: Prompt,
    answers: Answers,
}

impl Molmo2 {
    /// Returns the image tokens of images, [tokens, hidden].
    fn image_features(&self, images: &Images) -> Result<Tensor, ModelError> {
        self.images.features(images, &self.graphs)
    }

    /// Returns the embeddings [rows, count, hidden] of the same prompt in each row, with the features
    /// [tokens of all rows, hidden] of the images added at their patch tokens.
    fn embed(&self, ids: &[i64], rows: i64, features: Option<&Tensor>) -> Tensor {
        let embeddings = self.text.embed(&self.integers(ids).unsqueeze(0)).repeat([rows, 1, 1]);
        let Some(features) = features else {
            return embeddings;
        };
        let patches = (0..).zip(ids).filter(|(_, id)| self.prompter.is_patch(**id));
        let places: Vec<i64> = patches.map(|(place, _)| place).collect();
        let features = features.view([rows, places.len() as i64, -1]);
        embeddings.index_add(1, &self.integers(&places), &features)
    }

    fn integers(&self, values: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_device(self.info.placement.device)
    }

    /// Pads a prompt and its embeddings, so that they can be read.
    fn reading(&self, ids: &[i64], embeddings: &Tensor) -> Reading {
        let mut of_images: Vec<bool> = ids.iter().map(|&id| self.prompter.is_image(id)).collect();
        let length = ids.len() as i64;
        let padded = if self.pads_prompts { padded_length(length) } else { length };
        of_images.resize(usize::try_from(padded).unwrap_or(0), false);
        Reading {
            embeddings: embeddings.constant_pad_nd([0, 0, 0, padded - length]),
            of_images: Tensor::from_slice(&of_images).to_device(self.info.placement.device),
            last: self.integers(&[length - 1]),
        }
    }

    /// Reads a prompt and returns the last hidden state before the final norm: [rows, padded length, hidden],
    /// or that of the one position in `only`, [rows, 1, hidden]. Text attends to what is before it, and the
    /// tokens of images also to each other. Like a [`DecodeStep`], it waits for nothing and its shapes are
    /// those of its arguments, so that a CUDA graph can hold it where these keep their addresses.
    ///
    /// [`DecodeStep`]: crate::generation::greedy::DecodeStep
    fn read(
        &self,
        reading: &Reading,
        cache: Option<&mut dyn KvCache>,
        only: Option<&Tensor>,
        keep: &mut dyn FnMut(&Tensor),
    ) -> Tensor {
        let Reading { embeddings, of_images, .. } = reading;
        let count = of_images.size()[0];
        let before = Tensor::ones([count, count], (Kind::Bool, self.info.placement.device)).tril(0);
        let allowed = before.logical_or(&of_images.unsqueeze(0).logical_and(&of_images.unsqueeze(1)));
        let positions = Tensor::arange(count, (Kind::Int64, self.info.placement.device));
        let bias = self.text.bias(&allowed);
        self.text.forward(embeddings.shallow_clone(), &positions, Some(&bias), cache, only, keep)
    }

    /// Reads a prompt and returns the logits of the token after it, [rows, vocabulary], fp32.
    fn read_to_end(&self, reading: &Reading, cache: Option<&mut dyn KvCache>) -> Tensor {
        self.text.next_logits(&self.read(reading, cache, Some(&reading.last), &mut |_| {}))
    }

    /// Returns the logits of the token after a prompt, [rows, vocabulary], fp32, and keeps nothing else of
    /// it.
    fn next_logits(&self, reading: &Reading) -> Result<Tensor, ModelError> {
        let Reading { embeddings, of_images, last } = reading;
        let forward = |inputs: &[Tensor]| {
            let [embeddings, of_images, last] = [0, 1, 2].map(|index| inputs[index].shallow_clone());
            let reading = Reading { embeddings, of_images, last };
            vec![self.read_to_end(&reading, None)]
        };
        let outputs = self.graphs.run(&[embeddings], &[of_images, last], forward)?;
        outputs.into_iter().next().ok_or(ModelError::NotPrepared)
    }

    /// Returns the logits of the labels, [images, labels], for images whose prompts have one layout.
    fn label_logits(&self, task: &Task, grid: [i64; 4], images: &[&Pixels]) -> Result<Tensor, ModelError> {
        let ids = self.prompter.lay_out(&task.prompt, &[grid]);
        self.check_length(ids.len())?;
        let features = self.image_features(&Images::new(images)?)?;
        let reading = self.reading(&ids, &self.embed(&ids, images.len() as i64, Some(&features)));
        if !task.answers.reads_cache() {
            let next = self.next_logits(&reading)?;
            return Ok(task.answers.logits(&self.text, &next, &mut GrowingKvCache::new(0)));
        }
        let mut cache = GrowingKvCache::new(self.text.sizes().layers);
        let next = self.read_to_end(&reading, Some(&mut cache));
        cache.truncate(ids.len() as i64);
        Ok(task.answers.logits(&self.text, &next, &mut cache))
    }

    /// Generates the text after a prompt of `length` tokens.
    fn write(
        &self,
        reading: &Reading,
        length: usize,
        greedy: &Greedy<'_>,
        on_token: &mut dyn FnMut(&[i64]) -> ControlFlow<()>,
    ) -> Result<GreedyOutput, ModelError> {
        let positions = reading.of_images.size()[0].max((length + greedy.max_new_tokens) as i64);
        let shape = BufferShape { capacity: capacity_for(positions), source: 0 };
        let new = || GreedyText::new(&self.text, shape.capacity, greedy.graphs);
        self.writings.with(shape, new, |writing| {
            let buffers = &writing.buffers;
            buffers.cache.clear();
            let next = self.read_to_end(reading, Some(&mut buffers.cache.prompt()));
            let length = length as i64;
            buffers.begin(length, &next)?;
            greedy.run(&Step { model: &self.text, writing }, length, on_token)
        })
    }

    /// Returns how many tokens may follow a prompt of this length.
    ///
    /// # Errors
    /// Fails when the prompt is longer than the model's positions.
    fn check_length(&self, prompt: usize) -> Result<usize, ModelError> {
        let longest = usize::try_from(self.config.text_config.max_position_embeddings).unwrap_or(usize::MAX);
        longest.checked_sub(prompt).ok_or_else(|| {
            ModelError::Unsupported(format!(
                "the prompt has {prompt} tokens, more than the model's {longest}"
            ))
        })
    }

    fn task(&self, task: &TaskSpec) -> Result<Task, ModelError> {
        if task.answers.len() != task.labels.len() {
            return Err(ModelError::Unsupported("each label needs an answer".to_owned()));
        }
        let prompt = self.prompter.prompt(&question(task), 1)?;
        let vocabulary = self.config.text_config.vocab_size;
        let end = self.ends.first().copied();
        let answers =
            Answers::new(&self.prompter, &task.answers, end, vocabulary, self.info.placement.device)?;
        Ok(Task { prompt, answers })
    }
}

/// Returns the question that the model answers: that of the task, and the words to answer it in.
fn question(task: &TaskSpec) -> String {
    format!("{} Answer with one of: {}.", task.question, task.answers.join(", "))
}

impl Model for Molmo2 {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        let prepared = self
            .task(task)
            .map_err(|error| ModelError::Task { task: task.task.clone(), message: error.to_string() })?;
        self.tasks.insert(id, prepared);
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    /// Classifies images in groups whose prompts have one layout: those of similar proportions run together.
    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        let task = self.tasks.get(&id).ok_or(ModelError::NotPrepared)?;
        let mut groups = BTreeMap::<[i64; 4], Vec<usize>>::new();
        for (index, image) in images.iter().enumerate() {
            groups.entry(tiles_of(image)?.grid).or_default().push(index);
        }
        let mut all: Vec<ModelOutput> = images.iter().map(|_| ModelOutput::default()).collect();
        for (grid, indices) in groups {
            let members: Vec<&Pixels> = indices.iter().map(|&index| images[index]).collect();
            let answers = outputs(&self.label_logits(task, grid, &members)?)?;
            for (index, answer) in indices.into_iter().zip(answers) {
                all[index] = answer;
            }
        }
        Ok(all)
    }

    fn warm_up(&mut self, id: TaskId, images: &[&Pixels]) -> Result<(), ModelError> {
        let _scores = self.classify(id, images)?;
        if self.graphs.is_on() {
            self.text.compile_step();
        }
        match self.info.preprocessor.tiling() {
            Some(tiling) if images.len() == 1 && self.graphs.is_on() => {
                self.images.warm_up(tiling, &self.graphs)
            }
            _ => Ok(()),
        }
    }

    fn generator(&self) -> Option<&dyn Generator> {
        Some(self)
    }

    fn bench_targets(
        &self,
        images: &[&Pixels],
        new_tokens: usize,
    ) -> Result<Vec<BenchTarget<'_>>, ModelError> {
        bench_targets::bench_targets(self, images, new_tokens)
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        parity::parity_outputs(self, fixture)
    }
}

impl Generator for Molmo2 {
    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        let prompt = self.prompter.prompt(&request.prompt, 1)?;
        let ids = self.prompter.lay_out(&prompt, &[tiles_of(image)?.grid]);
        let new_tokens_max = request.max_new_tokens.min(self.check_length(ids.len())?);
        let features = self.image_features(&Images::new(&[image])?)?;
        let reading = self.reading(&ids, &self.embed(&ids, 1, Some(&features)));

        let (mut stream, mut stopped, mut failure) = (TextStream::default(), false, None);
        let greedy = Greedy {
            ends: &self.ends,
            max_new_tokens: new_tokens_max,
            steps_per_read: 1,
            graphs: self.graphs.is_on(),
        };
        let written = self.write(&reading, ids.len(), &greedy, &mut |tokens| {
            let flow = match self.prompter.decode(tokens) {
                Ok(text) => stream.advance(&text, on_text),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            };
            stopped = flow.is_break();
            flow
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let text = self.prompter.decode(&written.tokens)?;
        if !stopped {
            stream.finish(&text, on_text);
        }
        Ok(Generated {
            text,
            regions: Vec::new(),
            prompt_tokens: ids.len(),
            new_tokens: written.tokens.len(),
            finished: written.ended,
        })
    }
}
