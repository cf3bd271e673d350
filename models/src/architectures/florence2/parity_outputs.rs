//! The tensors of a parity fixture.

use std::collections::BTreeMap;

use tch::{Device, IndexOp, Kind, Tensor};

use super::Florence2;
use super::decoding::BartDecoder;
use super::network::END;
use super::prompt;
use crate::ModelError;
use crate::generation::beam::beam_search;
use crate::generation::greedy::Greedy;
use crate::image::preprocess::stack;
use crate::inspect::fixture::Fixture;

/// The number of tokens that the fixture script lets a text have by default.
const USUAL_TOKENS: usize = 16;

/// The tensors by their names in the fixture.
type Outputs = BTreeMap<String, Tensor>;

/// Computes the tensors that the fixture expects.
pub(super) fn parity_outputs(model: &Florence2, fixture: &Fixture) -> Result<Outputs, ModelError> {
    let mut outputs = Outputs::new();
    let images = fixture.images(&["landscape"], &model.info.preprocessor)?;
    outputs.insert("pixel_values".to_owned(), stack(&images.iter().collect::<Vec<_>>(), Device::Cpu));
    // From here on everything starts at the reference's own pixels, so that an error shows where it arises.
    let features = image_features(model, fixture, &mut outputs)?;
    states(model, fixture, &features, &mut outputs)?;
    let written = written_tokens(fixture)?;
    for task in fixture.tasks() {
        let key = key_of(task);
        let (_, question) = prompt::parse(task)?;
        let prompt = model.network.prompt(&question)?;
        outputs.insert(format!("{key}.input_ids"), model.input_ids(&prompt)?);
        let encoded = model.network.encoder_states(&features, &model.network.ids(&[&prompt])?);
        let encoded = &encoded[encoded.len() - 1];
        greedy_search(model, fixture, encoded, &key, written, &mut outputs)?;
        searched_beams(model, fixture, encoded, &key, written, &mut outputs)?;
    }
    Ok(outputs)
}

fn image_features(model: &Florence2, fixture: &Fixture, outputs: &mut Outputs) -> Result<Tensor, ModelError> {
    let network = &model.network;
    let pixels =
        fixture.input("pixel_values")?.to_device(model.info.placement.device).to_kind(network.bart.kind());
    let stages = network.tower.stages(&pixels);
    let last = &stages[stages.len() - 1];
    let features = network.projector.forward(last);
    let channels_first = |x: &Tensor| x.permute([0, 3, 1, 2]);
    outputs.insert("vision.last_hidden_state".to_owned(), channels_first(last));
    outputs.insert("image_features".to_owned(), features.shallow_clone());
    for (index, stage) in stages.iter().enumerate() {
        let name = format!("vision.stage.{index}");
        // Full-size fixtures keep the last stage alone.
        if fixture.expects(&name) {
            outputs.insert(name, channels_first(stage));
        }
    }
    Ok(features)
}

/// Adds the states of encoder and decoder over the first task's prompt and the fixture's own tokens.
fn states(
    model: &Florence2,
    fixture: &Fixture,
    features: &Tensor,
    outputs: &mut Outputs,
) -> Result<(), ModelError> {
    let (network, device) = (&model.network, model.info.placement.device);
    let text = fixture.input("od.input_ids")?.i((.., network.image_tokens..)).to_device(device);
    let encoder = network.encoder_states(features, &text);
    let memory = network.bart.memory(&encoder[encoder.len() - 1], None);
    let tokens = fixture.input("decoder_input_ids")?.to_device(device);
    let decoder = network.bart.decode(&tokens, &memory, &mut network.bart.cache());
    outputs.insert("logits".to_owned(), network.bart.logits(&decoder[decoder.len() - 1]));
    outputs.insert("encoder_last_hidden_state".to_owned(), encoder[encoder.len() - 1].shallow_clone());
    for (part, states) in [("encoder", encoder), ("decoder", decoder)] {
        for (index, state) in states.into_iter().enumerate() {
            outputs.insert(format!("{part}.hidden_states.{index}"), state);
        }
    }
    Ok(())
}

/// Returns the number of tokens that the reference let a text have: as many as any has that did not end by
/// itself.
fn written_tokens(fixture: &Fixture) -> Result<usize, ModelError> {
    let mut longest = USUAL_TOKENS;
    for task in fixture.tasks() {
        let ids =
            Vec::<i64>::try_from(fixture.input(&format!("{}.greedy.ids", key_of(task)))?.f_flatten(0, -1)?)?;
        if ids.last() != Some(&END) {
            return Ok(ids.len() - 1);
        }
        let ids = fixture.input(&format!("{}.beam.ids", key_of(task)))?;
        longest = longest.max(ids.numel().saturating_sub(1));
    }
    Ok(longest)
}

/// Returns the prefix of the names of a task's tensors.
fn key_of(task: &str) -> String {
    task.trim_matches(['<', '>']).to_lowercase()
}

fn greedy_search(
    model: &Florence2,
    fixture: &Fixture,
    encoded: &Tensor,
    key: &str,
    most: usize,
    outputs: &mut Outputs,
) -> Result<(), ModelError> {
    let bart = &model.network.bart;
    let greedy =
        Greedy { ends: &[END], max_new_tokens: most, steps_per_read: 1, graphs: model.graphs.is_on() };
    let written = model.write_greedily(&bart.memory(encoded, None), END, None, &greedy)?;
    let mut ids = vec![END];
    ids.extend(written.tokens);
    ids.extend(written.ended.then_some(END));
    let (key, name) = (format!("{key}.greedy"), format!("{key}.greedy.ids"));
    outputs.insert(name.clone(), fixture.aligned_ids(&name, ids)?);

    // The logits are taken along the reference's text: along another they would differ.
    let expected = fixture.input(&name)?.to_device(model.info.placement.device);
    let inputs = expected.narrow(1, 0, expected.size()[1] - 1);
    let states = bart.decode(&inputs, &bart.memory(encoded, None), &mut bart.cache());
    let logits = bart.logits(&states[states.len() - 1]).to_kind(Kind::Float);
    let top = format!("{key}.step_logits_top");
    if fixture.expects(&top) {
        let count = fixture.input(&top)?.size()[2];
        outputs.insert(top, logits.topk(count, -1, true, true).0);
    } else {
        outputs.insert(format!("{key}.step_logits"), logits);
    }
    Ok(())
}

fn searched_beams(
    model: &Florence2,
    fixture: &Fixture,
    encoded: &Tensor,
    key: &str,
    most: usize,
    outputs: &mut Outputs,
) -> Result<(), ModelError> {
    let bart = &model.network.bart;
    let mut writer = BartDecoder::new(bart, bart.memory(encoded, None));
    let found = beam_search(&mut writer, &model.beams, most, model.info.placement.device)?;
    let name = format!("{key}.beam.ids");
    // A text's score is a sum over its tokens, and so is its noise.
    let noise = fixture.decisive_margin() * found.tokens.len() as f64;
    let is_decided = f64::from(found.margin) > noise;
    let mut ids = vec![model.beams.decoder_start_token_id];
    ids.extend(&found.tokens);
    let expected = Vec::<i64>::try_from(fixture.input(&name)?.f_flatten(0, -1)?)?;
    let (ids, score) = if ids == expected || is_decided {
        (fixture.aligned_ids(&name, ids)?, found.score)
    } else {
        (fixture.undecided_ids(&name)?, score_of(model, encoded, &expected, most)?)
    };
    outputs.insert(name, ids);
    outputs.insert(format!("{key}.beam.sequences_scores"), Tensor::from_slice(&[score]));
    Ok(())
}

/// Returns the score that beam search would give a text, start token included, of at most `most` tokens after
/// it.
fn score_of(model: &Florence2, encoded: &Tensor, ids: &[i64], most: usize) -> Result<f32, ModelError> {
    let bart = &model.network.bart;
    let written = ids.len() - 1;
    let inputs = model.network.ids(&[&ids[..written]])?;
    let states = bart.decode(&inputs, &bart.memory(encoded, None), &mut bart.cache());
    let logits = bart.logits(&states[states.len() - 1]).to_kind(Kind::Float);
    let targets = model.network.ids(&[&ids[1..]])?.unsqueeze(-1);
    let chosen = logits.log_softmax(-1, Kind::Float).gather(-1, &targets, false);
    let steps = Vec::<f32>::try_from(chosen.flatten(0, -1).to_device(Device::Cpu))?;
    let is_free = |step: &usize| model.beams.forced(*step, most).is_none();
    let total: f32 = (0..written).filter(is_free).map(|step| steps[step]).sum();
    Ok(total / model.beams.length_divisor(written))
}
