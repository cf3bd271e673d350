//! Tests that texts in fixed buffers and padded sources are the same as without them.

use std::ops::ControlFlow;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::bart::Memory;
use super::decoding::{BartDecoder, GreedyText, Step};
use super::network::{END, Source};
use super::{Florence2, prompt};
use crate::generation::beam::beam_search;
use crate::generation::decoder::Decoder;
use crate::generation::greedy::{DecodeStep, Greedy};
use crate::image::preprocess::stack;
use crate::model::Model;
use crate::options::ModelOptions;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};
use crate::{GenerateRequest, Generator, ImageLimits, Pixels, decode};

const SNAPSHOTS: [&str; 2] = ["nano/florence2", "tests/fixtures/parity/florence2/snapshot"];
const PROMPTS: [&str; 3] = ["<CAPTION>", "<OD>", "<CAPTION_TO_PHRASE_GROUNDING>a sign"];
/// The tolerance, as a share of the largest value.
const TOLERANCE: f64 = 1e-5;

fn crate_folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn load(snapshot: &str, mode: &str, pads_sources: bool) -> Florence2 {
    let snapshot = Snapshot::open(&crate_folder().join(snapshot)).unwrap();
    let given = serde_json::json!({ "mode": mode });
    let (own, _) = super::ARCHITECTURE.read_options(given.as_object().unwrap());
    let options = ModelOptions { own, ..ModelOptions::default() };
    let place = Placement { device: Device::Cpu, kind: Kind::Float };
    let mut model = Florence2::load(&snapshot, &options, place).unwrap();
    model.network.pads_sources = pads_sources;
    model
}

fn pixels(model: &Florence2) -> Pixels {
    let path = crate_folder().join("tests/fixtures/parity/florence2/images/landscape.png");
    model
        .info
        .preprocessor
        .apply(&decode(&std::fs::read(path).unwrap(), ImageLimits::default()).unwrap())
        .unwrap()
}

fn source(model: &Florence2, prompt: &str) -> Source {
    let network = &model.network;
    let prompt = network.prompt(&prompt::parse(prompt).unwrap().1).unwrap();
    let features = network.image_features(&stack(&[&pixels(model)], Device::Cpu));
    network.source(&features, &network.ids(&[&prompt]).unwrap())
}

fn memory(model: &Florence2, source: &Source) -> Memory {
    model.network.bart.memory(&source.state, source.bias.as_ref())
}

fn assert_near(ours: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(ours.size(), expected.size(), "{what}");
    let largest = |x: &Tensor| f64::try_from(x.abs().max()).unwrap();
    let error = largest(&(ours - expected)) / largest(expected);
    assert!(error < TOLERANCE, "{what}: {error}");
}

/// The cases include buffers that have held another text, and texts up to the last position of the decoder.
#[test]
fn steps_in_fixed_buffers_give_the_text_of_a_growing_cache() {
    for snapshot in SNAPSHOTS {
        for pads_sources in [false, true] {
            let model = load(snapshot, "", pads_sources);
            let bart = &model.network.bart;
            let count = usize::try_from(model.network.positions).unwrap();
            for prompt in PROMPTS {
                let what = format!("{snapshot} {prompt}, padded: {pads_sources}");
                let source = source(&model, prompt);
                let again = || memory(&model, &source);
                let mut writer = BartDecoder::new(bart, again());
                let writing = GreedyText::new(bart, 256, &again());
                for _ in 0..2 {
                    writing.begin(&again(), END);
                }
                let step = Step { bart, writing: &writing };
                let (mut token, mut tokens) = (END, Vec::new());
                for _ in 0..count {
                    let expected = writer.step(&Tensor::from_slice(&[token]).view([1, 1]));
                    step.step().unwrap();
                    assert_near(step.buffers().logits(), &expected, &what);
                    token = expected.argmax(-1, false).int64_value(&[0]);
                    assert_eq!(step.buffers().token().int64_value(&[0, 0]), token, "{what}");
                    tokens.push(token);
                }
                let greedy = Greedy { ends: &[], max_new_tokens: count, steps_per_read: 5, graphs: false };
                for _ in 0..2 {
                    let written = model.write_greedily(&again(), END, None, &greedy).unwrap();
                    assert_eq!(written.tokens, tokens, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_search_with_one_beam_is_greedy() {
    for snapshot in SNAPSHOTS {
        let mut model = load(snapshot, "", false);
        model.beams.num_beams = 1;
        model.beams.no_repeat_ngram_size = 0;
        assert!(model.beams.is_greedy());
        for prompt in PROMPTS {
            let source = source(&model, prompt);
            for (forced_first, forced_last) in
                [(None, None), (Some(0), None), (None, Some(END)), (Some(0), Some(END))]
            {
                model.beams.forced_bos_token_id = forced_first;
                model.beams.forced_eos_token_id = forced_last;
                for most in [0, 1, 2, 3, 30] {
                    let mut writer = BartDecoder::new(&model.network.bart, memory(&model, &source));
                    let found = beam_search(&mut writer, &model.beams, most, Device::Cpu).unwrap();
                    let ours = model.write_one(&memory(&model, &source), most).unwrap();
                    let what = format!("{snapshot} {prompt} {most} {forced_first:?} {forced_last:?}");
                    assert_eq!(ours, found.tokens, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_padded_source_is_read_as_it_is_without() {
    let label = |label: &str, prompts: &[&str]| {
        (label.to_owned(), prompts.iter().map(|prompt| (*prompt).to_owned()).collect())
    };
    let task = TaskSpec {
        task: "roadwork".to_owned(),
        question: "Is there road work?".to_owned(),
        labels: vec![
            label("no", &["a sign", "no road work"]),
            label("yes", &["road work", "a road work sign"]),
        ],
        answers: Vec::new(),
        head: None,
    };
    for snapshot in SNAPSHOTS {
        for mode in ["likelihood", "detect"] {
            let [expected, ours] = [false, true].map(|pads_sources| {
                let mut model = load(snapshot, mode, pads_sources);
                model.prepare(TaskId(1), &task).unwrap();
                let pixels = pixels(&model);
                model.classify(TaskId(1), &[&pixels, &pixels]).unwrap()
            });
            for (ours, expected) in ours.iter().zip(&expected) {
                let [ours_logits, expected_logits] =
                    [ours, expected].map(|scores| Tensor::from_slice(&scores.logits));
                assert_near(&ours_logits, &expected_logits, &format!("{snapshot} {mode}"));
                assert_eq!(ours.evidence.regions, expected.evidence.regions, "{snapshot}");
            }
        }
        for prompt in PROMPTS {
            let [expected, ours] = [false, true].map(|pads_sources| {
                let model = load(snapshot, "", pads_sources);
                let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: 20 };
                model.generate(&pixels(&model), &request, &mut |_| ControlFlow::Continue(())).unwrap()
            });
            assert_eq!(ours, expected, "{snapshot} {prompt}");
        }
    }
}
