//! Tests that texts in fixed buffers and padded prompts are the same as without them.

use std::ops::ControlFlow;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::parity::write_recorded;
use super::{Images, Molmo2, Reading, tiles_of};
use crate::ModelOptions;
use crate::architectures::molmo2::step::{GreedyText, Step};
use crate::generation::static_cache::capacity_for;
use crate::libtorch::{Stream, cuda_devices};
use crate::model::Model;
use crate::nn::kv_cache::GrowingKvCache;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};
use crate::{GenerateRequest, Generator, ImageLimits, Pixels, decode};

/// The trained snapshot, and the fixtures with grouped keys, and with YaRN and norms after the layers.
const SNAPSHOTS: [&str; 3] =
    ["nano/molmo2", "tests/fixtures/parity/molmo2/snapshot", "tests/fixtures/parity/molmo2_o/snapshot"];
const IMAGES: [&str; 2] = ["landscape", "portrait"];
const QUESTIONS: [&str; 2] =
    ["what is it?", "is there a sign of road work, and which others are there in the image?"];
/// The tolerance of logits, as a share of the largest.
const TOLERANCE: f64 = 1e-5;

/// Returns the folder of this crate. The machine with a GPU runs the tests in another checkout than they were
/// built in.
fn crate_folder() -> &'static Path {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built.exists() { built } else { Path::new("models") }
}

fn load(snapshot: &str, pads_prompts: bool) -> Molmo2 {
    Molmo2 { pads_prompts, ..load_on(Device::Cpu, snapshot, false) }
}

fn load_on(device: Device, snapshot: &str, graphs: bool) -> Molmo2 {
    let snapshot = Snapshot::open(&crate_folder().join(snapshot)).unwrap();
    let options = ModelOptions { graphs, ..ModelOptions::default() };
    Molmo2::load(&snapshot, &options, Placement { device, kind: Kind::Float }).unwrap()
}

fn pixels(model: &Molmo2, image: &str) -> Pixels {
    let path = crate_folder().join("tests/fixtures/parity/molmo2/images").join(format!("{image}.png"));
    model
        .info
        .preprocessor
        .apply(&decode(&std::fs::read(path).unwrap(), ImageLimits::default()).unwrap())
        .unwrap()
}

fn reading(model: &Molmo2, image: &str, question: &str) -> (Reading, i64) {
    let pixels = pixels(model, image);
    let prompt = model.prompter.prompt(question, 1).unwrap();
    let ids = model.prompter.lay_out(&prompt, &[tiles_of(&pixels).unwrap().grid]);
    let features = model.image_features(&Images::new(&[&pixels]).unwrap()).unwrap();
    (model.reading(&ids, &model.embed(&ids, 1, Some(&features))), ids.len() as i64)
}

/// Returns tokens and the logits that each was chosen by, with keys and values that grow by one position per
/// step.
fn with_a_growing_cache(model: &Molmo2, reading: &Reading, length: i64, count: usize) -> (Vec<i64>, Tensor) {
    let mut cache = GrowingKvCache::new(model.text.sizes().layers);
    let mut steps = vec![model.read_to_end(reading, Some(&mut cache))];
    cache.truncate(length);
    let mut tokens = Vec::new();
    loop {
        let next = steps[steps.len() - 1].argmax(-1, true);
        tokens.push(next.int64_value(&[0, 0]));
        if tokens.len() == count {
            return (tokens, Tensor::cat(&steps, 0));
        }
        let position = Tensor::from_slice(&[cache.positions()]);
        let state =
            model.text.forward(model.text.embed(&next), &position, None, Some(&mut cache), None, &mut |_| {});
        steps.push(model.text.next_logits(&state));
    }
}

fn in_fixed_buffers(
    model: &Molmo2,
    writing: &GreedyText,
    (reading, length): (&Reading, i64),
    count: usize,
) -> (Vec<i64>, Tensor) {
    writing.buffers.cache.clear();
    let first = model.read_to_end(reading, Some(&mut writing.buffers.cache.prompt()));
    writing.buffers.begin(length, &first).unwrap();
    let step = Step { model: &model.text, writing };
    let (written, logits) = write_recorded(&step, length, count, model.graphs.is_on()).unwrap();
    (written.tokens, Tensor::cat(&logits, 0))
}

fn assert_near(ours: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(ours.size(), expected.size(), "{what}");
    let largest = |x: &Tensor| f64::try_from(x.abs().max()).unwrap();
    let error = largest(&(ours - expected)) / largest(expected);
    assert!(error < TOLERANCE, "{what}: {error}");
}

/// The cases include texts beyond the smallest capacity, and buffers that have held another text.
#[test]
fn steps_in_fixed_buffers_give_the_text_of_a_growing_cache() {
    for snapshot in SNAPSHOTS {
        for pads_prompts in [false, true] {
            let model = load(snapshot, pads_prompts);
            let used = GreedyText::new(&model.text, capacity_for(257), model.graphs.is_on());
            let (other, length) = reading(&model, "portrait", "something else?");
            let _other = in_fixed_buffers(&model, &used, (&other, length), 9);
            for (image, question, positions) in [
                (IMAGES[0], QUESTIONS[0], None),
                (IMAGES[1], QUESTIONS[1], None),
                (IMAGES[0], QUESTIONS[1], Some(262)),
            ] {
                let (reading, length) = reading(&model, image, question);
                let count =
                    positions.map_or(12, |positions: i64| usize::try_from(positions - length).unwrap());
                let what = format!("{snapshot}, padded: {pads_prompts}, {count} tokens after {length}");
                let (tokens, logits) = with_a_growing_cache(&model, &reading, length, count);
                let fresh =
                    GreedyText::new(&model.text, capacity_for(length + count as i64), model.graphs.is_on());
                for writing in [&used, &fresh] {
                    let ours = in_fixed_buffers(&model, writing, (&reading, length), count);
                    assert_eq!(ours.0, tokens, "{what}");
                    assert_near(&ours.1, &logits, &what);
                }
            }
        }
    }
}

/// The padding of a graph holds whatever was in its buffers before.
#[test]
fn tokens_that_fill_up_change_no_others() {
    for snapshot in SNAPSHOTS {
        let model = load(snapshot, false);
        let images = Images::new(&[&pixels(&model, IMAGES[0])]).unwrap();
        let expected = model.image_features(&images).unwrap();
        let tokens = images.pooling.size()[0];
        let pooling =
            Tensor::cat(&[&images.pooling, &images.pooling.flip([0]), &images.pooling.zeros_like()], 0);
        let more = model.image_features(&Images { pooling, ..images }).unwrap();
        assert_near(&more.narrow(0, 0, tokens), &expected, snapshot);
    }
}

/// A warm-up records every layout that a single image may have, so none may be refused.
#[test]
fn every_layout_of_a_single_image_can_be_run() {
    let model = load(SNAPSHOTS[1], false);
    let tiling = model.info.preprocessor.tiling().unwrap();
    let image = pixels(&model, IMAGES[0]);
    let tiles = tiles_of(&image).unwrap();
    let known: Vec<_> =
        tiling.layouts(15).into_iter().map(|layout| tiling.layout_tiles(layout).unwrap()).collect();
    assert!(known.iter().any(|known| known.grid == tiles.grid && known.pooling.equal(&tiles.pooling)));
    assert!(tiling.layouts(15).iter().any(|&layout| image.values.size() == tiling.shape(layout)));
    model.images.warm_up(tiling, &model.graphs).unwrap();
}

/// On a GPU, the steps are replayed, which calls no code of ours in between.
#[test]
fn recorded_logits_are_those_that_each_token_was_chosen_by() {
    let gpus = cuda_devices();
    if gpus == 0 {
        eprintln!("skipped on CUDA: no GPU here");
    }
    for device in std::iter::once(Device::Cpu).chain((0..gpus.min(1)).map(Device::Cuda)) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for snapshot in SNAPSHOTS {
            let model = load_on(device, snapshot, true);
            let (reading, length) = reading(&model, IMAGES[0], QUESTIONS[0]);
            let writing = GreedyText::new(&model.text, capacity_for(257), model.graphs.is_on());
            for count in [1, 12] {
                let what = format!("{device:?} {snapshot} {count}");
                let (tokens, logits) = in_fixed_buffers(&model, &writing, (&reading, length), count);
                assert_eq!(tokens.len(), count, "{what}");
                assert_eq!(Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap(), tokens, "{what}");
            }
        }
    }
}

#[test]
fn a_padded_prompt_is_read_as_it_is_without() {
    for snapshot in SNAPSHOTS {
        let [mut plain, mut padded] = [false, true].map(|pads_prompts| load(snapshot, pads_prompts));
        for (image, question) in [(IMAGES[0], QUESTIONS[0]), (IMAGES[1], QUESTIONS[1])] {
            let [(exact, length), (filled, same)] =
                [&plain, &padded].map(|model| reading(model, image, question));
            assert_eq!((length, same), (same, exact.of_images.size()[0]));
            assert!(filled.of_images.size()[0] % 32 == 0 && filled.of_images.size()[0] > length);
            let [expected, ours] = [(&plain, &exact), (&padded, &filled)]
                .map(|(model, reading)| model.read_to_end(reading, None));
            assert_near(&ours, &expected, &format!("{snapshot} {image}"));
        }
        for answers in [["a", "t"], ["no such thing", "a sign of road work"]] {
            let task = TaskSpec {
                task: "roadwork".to_owned(),
                question: QUESTIONS[0].to_owned(),
                labels: answers.map(|answer| (answer.to_owned(), Vec::new())).to_vec(),
                answers: answers.map(str::to_owned).to_vec(),
                head: None,
            };
            let [expected, ours] = [&mut plain, &mut padded].map(|model| {
                model.prepare(TaskId(1), &task).unwrap();
                let images = IMAGES.map(|image| pixels(model, image));
                let scores = model.classify(TaskId(1), &images.each_ref()).unwrap();
                Tensor::from_slice(&scores.into_iter().flat_map(|scores| scores.logits).collect::<Vec<f32>>())
            });
            assert_near(&ours, &expected, &format!("{snapshot} {answers:?}"));
        }
        let [expected, ours] = [&plain, &padded].map(|model| {
            let request = GenerateRequest { prompt: QUESTIONS[1].to_owned(), max_new_tokens: 12 };
            let pixels = pixels(model, IMAGES[0]);
            // Each text is generated twice, the second time in kept buffers.
            [(); 2].map(|()| model.generate(&pixels, &request, &mut |_| ControlFlow::Continue(())).unwrap())
        });
        assert_eq!(ours[0], ours[1]);
        assert_eq!(ours, expected);
    }
}
