//! The tensors of a parity fixture, whose cases are prompts with none, one and two images.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use tch::{Device, Kind, Tensor};

use super::step::{GreedyText, Step};
use super::{Images, Molmo2, tiles_of};
use crate::ModelError;
use crate::generation::greedy::{DecodeStep, Greedy, GreedyOutput};
use crate::generation::static_cache::{capacity_for, padded_length};
use crate::image::preprocess::Pixels;
use crate::inspect::fixture::Fixture;

/// The names of the first and the second image of a case.
const IMAGES: [&str; 2] = ["landscape", "portrait"];
/// The number of the largest logits of each step that a full-size fixture keeps.
const TOP: i64 = 8;

/// Computes the tensors that the fixture expects, of all its cases.
pub(super) fn parity_outputs(
    model: &Molmo2,
    fixture: &Fixture,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let mut outputs = BTreeMap::new();
    for (name, question) in fixture.questions() {
        let case = Case { model, fixture, name };
        let mut own = case.inputs(question)?;
        case.run(&mut own)?;
        outputs.extend(own.into_iter().map(|(tensor, value)| (format!("{name}.{tensor}"), value)));
    }
    Ok(outputs)
}

/// A case of the fixture, whose tensors are named `NAME.TENSOR`.
struct Case<'a> {
    model: &'a Molmo2,
    fixture: &'a Fixture,
    name: &'a str,
}

/// The tensors of a case by their names.
type Outputs = BTreeMap<String, Tensor>;

impl Case<'_> {
    fn shape(&self, tensor: &str) -> Option<Vec<i64>> {
        self.fixture.shape(&format!("{}.{tensor}", self.name))
    }

    fn input(&self, tensor: &str) -> Result<Tensor, ModelError> {
        self.fixture.input(&format!("{}.{tensor}", self.name))
    }

    fn pixels(&self) -> Result<Vec<Pixels>, ModelError> {
        let count = self.shape("image_grids").map_or(0, |shape| shape[0]);
        let names = &IMAGES[..usize::try_from(count).unwrap_or(0).min(IMAGES.len())];
        self.fixture.images(names, &self.model.info.preprocessor)
    }

    /// Returns the outputs of the processor.
    fn inputs(&self, question: &str) -> Result<Outputs, ModelError> {
        let (pixels, prompter) = (self.pixels()?, &self.model.prompter);
        let grids: Vec<[i64; 4]> =
            pixels.iter().map(|image| Ok(tiles_of(image)?.grid)).collect::<Result<_, ModelError>>()?;
        let ids = prompter.lay_out(&prompter.prompt(question, grids.len())?, &grids);
        let kinds: Vec<i64> = ids.iter().map(|&id| i64::from(prompter.is_image(id))).collect();
        let ids = Tensor::from_slice(&ids).unsqueeze(0);
        let mut outputs = Outputs::from([
            ("attention_mask".to_owned(), ids.ones_like()),
            ("mm_token_type_ids".to_owned(), Tensor::from_slice(&kinds).unsqueeze(0)),
            ("input_ids".to_owned(), ids),
        ]);
        if grids.is_empty() {
            return Ok(outputs);
        }
        let images = Images::new(&pixels.iter().collect::<Vec<_>>())?;
        let crops: Vec<i64> = pixels.iter().map(|image| image.values.size()[0]).collect();
        outputs.insert("image_token_pooling".to_owned(), images.pooling);
        outputs.insert("image_grids".to_owned(), Tensor::from_slice(&grids.concat()).view([-1, 4]));
        outputs.insert("image_num_crops".to_owned(), Tensor::from_slice(&crops));
        // Full-size fixtures leave the pixels out.
        if self.shape("pixel_values").is_some() {
            outputs.insert("pixel_values".to_owned(), images.patches);
        }
        Ok(outputs)
    }

    /// Returns the reference's own images where the fixture has them, so that an error shows where it arises.
    fn images(&self) -> Result<Option<Images>, ModelError> {
        if self.shape("image_grids").is_none() {
            return Ok(None);
        }
        let patches = match self.shape("pixel_values") {
            Some(_) => self.input("pixel_values")?,
            None => Images::new(&self.pixels()?.iter().collect::<Vec<_>>())?.patches,
        };
        Ok(Some(Images { patches, pooling: self.input("image_token_pooling")?.to_kind(Kind::Int64) }))
    }

    /// Runs the model on the reference's inputs, and adds its outputs.
    fn run(&self, outputs: &mut Outputs) -> Result<(), ModelError> {
        let (model, images) = (self.model, self.images()?);
        let ids = Vec::<i64>::try_from(&self.input("input_ids")?.flatten(0, -1))?;
        let features = images.as_ref().map(|images| model.image_features(images)).transpose()?;
        if let (Some(images), Some(features)) = (&images, &features) {
            let patches = images.patches.to_device(model.info.placement.device);
            for (index, state) in model.images.tower.hidden_states(&patches).into_iter().enumerate() {
                outputs.insert(format!("vit.hidden_states.{index}"), state);
            }
            outputs.insert("image_features".to_owned(), features.shallow_clone());
        }
        let reading = model.reading(&ids, &model.embed(&ids, 1, features.as_ref()));
        let length = ids.len() as i64;
        let written = self.shape("greedy.ids").map_or(0, |shape| shape[1]).max(padded_length(length));
        let writing = GreedyText::new(&model.text, capacity_for(written), model.graphs.is_on());
        let mut states = Vec::new();
        // The states are kept without the padding of the prompt.
        let mut keep = |state: &Tensor| states.push(state.narrow(1, 0, length));
        let last = model.read(&reading, Some(&mut writing.buffers.cache.prompt()), None, &mut keep);
        keep(&model.text.output(&last));
        for (index, state) in states.iter().enumerate() {
            outputs.insert(format!("text.hidden_states.{index}"), state.shallow_clone());
        }
        let logits = model.text.logits(&states[states.len() - 1]);
        // Full-size fixtures have the logits of the last positions only.
        let kept = self.shape("logits").map_or(0, |shape| shape[1]).min(logits.size()[1]);
        outputs.insert("logits".to_owned(), logits.narrow(1, logits.size()[1] - kept, kept));
        writing.buffers.begin(length, &model.text.next_logits(&last.index_select(1, &reading.last)))?;
        self.write(&ids, &writing, outputs)
    }

    /// Generates as many tokens as the reference did, none of which ends the text.
    fn write(&self, ids: &[i64], writing: &GreedyText, outputs: &mut Outputs) -> Result<(), ModelError> {
        let step = Step { model: &self.model.text, writing };
        let length = self.shape("greedy.ids").map_or(0, |shape| shape[1]);
        let count = usize::try_from(length).unwrap_or(0).saturating_sub(ids.len());
        let (written, logits) = write_recorded(&step, ids.len() as i64, count, self.model.graphs.is_on())?;
        if logits.is_empty() {
            return Ok(());
        }
        let steps = Tensor::stack(&logits, 1);
        if self.shape("greedy.step_logits_top").is_some() {
            outputs.insert("greedy.step_logits_top".to_owned(), steps.topk(TOP, -1, true, true).0);
        } else {
            outputs.insert("greedy.step_logits".to_owned(), steps);
        }
        let all = Tensor::from_slice(&[ids, &written.tokens].concat()).unsqueeze(0);
        outputs.insert("greedy.ids".to_owned(), all.to_device(Device::Cpu));
        Ok(())
    }
}

/// Generates `max_new_tokens` tokens, and keeps the logits [1, vocabulary] that each was chosen by. They are
/// copied between the steps: a graph repeats what a step puts on the device, and calls no code of ours.
pub(super) fn write_recorded(
    step: &dyn DecodeStep,
    begin: i64,
    max_new_tokens: usize,
    graphs: bool,
) -> Result<(GreedyOutput, Vec<Tensor>), ModelError> {
    let mut logits = Vec::new();
    // Each token is read back at once, so the buffers still hold the logits that it was chosen by.
    let greedy = Greedy { ends: &[], max_new_tokens, steps_per_read: 1, graphs };
    let written = greedy.run(step, begin, &mut |_| {
        logits.push(step.buffers().logits().copy());
        ControlFlow::Continue(())
    })?;
    Ok((written, logits))
}
