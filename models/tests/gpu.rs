//! Tests the behaviour that only a GPU can show: parity there, replays and half precision compared with eager
//! fp32, and two models at once.
//!
//! Without a GPU every test says that it is left out. The binary, stripped, runs on any machine in the
//! repository's folder.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};

use concord_models::libtorch::{Stream, load_cuda_part};
use concord_models::parity::{Comparison, Fixture, check_with};
use concord_models::{
    Architecture, GenerateRequest, Generated, ImageLimits, Model, ModelOptions, OptionTable, Pixels,
    RgbImage, TaskId, TaskSpec, decode, graph_fallbacks, load_model,
};
use image::imageops::{flip_horizontal, flip_vertical, rotate180};
use tch::{Device, Kind, Tensor};

use harness::gpus;

const DEVICE: &str = "cuda:0";

/// The largest error in fp32, as a share of the largest value: a padded batch has another shape, for which
/// other kernels are chosen, which add in another order.
const FP32_TOLERANCE: f64 = 1e-4;
/// The largest error of bf16 compared with fp32, for hidden states, logits and votes: twice the largest that
/// these snapshots have on a CPU (0.030).
const BF16_TOLERANCE: f64 = 0.06;

const TASK: TaskId = TaskId(1);
const QUESTION: &str = "Is there active road construction in this image?";

/// A lock that runs one test at a time: nothing may disturb a graph capture, and fallbacks are counted for
/// the whole process.
static GPU: Mutex<()> = Mutex::new(());

/// Locks the GPU for the caller, or says that there is none.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    if gpus() == 0 {
        return None;
    }
    let gpu = GPU.lock().unwrap_or_else(PoisonError::into_inner);
    load_cuda_part().unwrap();
    Some(gpu)
}

/// Returns the crate's folder, on this machine or where the test was built.
fn models() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = ["models", "."].map(PathBuf::from);
    let folders = std::iter::once(built.to_owned()).chain(here);
    let found = folders.into_iter().find(|folder| folder.join("tests/fixtures/parity").is_dir());
    found.ok_or("no fixtures: run this in the repository's folder").unwrap()
}

fn fixture(name: &str) -> PathBuf {
    models().join("tests/fixtures/parity").join(name)
}

/// Returns the name of every fixture, so that a new architecture is tested as soon as it has one.
fn fixtures() -> Vec<String> {
    let folders = fs::read_dir(fixture("")).unwrap();
    folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect()
}

/// The settings with which a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    dtype: &'static str,
    graphs: bool,
}

const EAGER: Way = Way { dtype: "fp32", graphs: false };
const REPLAYED: Way = Way { dtype: "fp32", graphs: true };
const HALF: [Way; 2] = [Way { dtype: "bf16", graphs: false }, Way { dtype: "bf16", graphs: true }];

impl Way {
    fn options(self) -> ModelOptions {
        ModelOptions {
            device: DEVICE.to_owned(),
            dtype: self.dtype.to_owned(),
            graphs: self.graphs,
            ..ModelOptions::default()
        }
    }
}

/// Returns the architecture's own options, as read from a configuration.
fn own(architecture: &str, given: &serde_json::Value) -> OptionTable {
    let (own, faults) = Architecture::by_name(architecture).unwrap().read_options(given.as_object().unwrap());
    assert!(faults.is_empty(), "{faults:?}");
    own
}

/// A snapshot of a model that votes.
#[derive(Debug, Clone, Copy)]
struct Voter {
    architecture: &'static str,
    snapshot: &'static str,
    mode: &'static str,
    head: Option<&'static str>,
    labels: usize,
}

const fn voter(architecture: &'static str, snapshot: &'static str) -> Voter {
    Voter { architecture, snapshot, mode: "", head: None, labels: 2 }
}

const NANO_DINOV3: Voter =
    Voter { head: Some("head.roadwork.safetensors"), ..voter("dinov3", "nano/dinov3") };
const NANO_MOLMO2: Voter = voter("molmo2", "nano/molmo2");
const VOTERS: [Voter; 10] = [
    NANO_DINOV3,
    voter("siglip2", "nano/siglip2"),
    voter("florence2", "nano/florence2"),
    Voter { mode: "detect", ..voter("florence2", "nano/florence2") },
    NANO_MOLMO2,
    Voter {
        head: Some("classifier_head.safetensors"),
        labels: 10,
        ..voter("dinov3", "tests/fixtures/parity/dinov3_vit/snapshot")
    },
    voter("siglip2", "tests/fixtures/parity/siglip2/snapshot"),
    voter("siglip2", "tests/fixtures/parity/siglip2_naflex/snapshot"),
    voter("florence2", "tests/fixtures/parity/florence2/snapshot"),
    voter("molmo2", "tests/fixtures/parity/molmo2_o/snapshot"),
];

impl Voter {
    fn load(self, way: Way) -> Box<dyn Model> {
        let options = ModelOptions {
            architecture: self.architecture.to_owned(),
            snapshot: self.snapshot.into(),
            own: match self.mode {
                "" => OptionTable::default(),
                mode => own(self.architecture, &serde_json::json!({ "mode": mode })),
            },
            ..way.options()
        };
        load_model(&options, &models()).unwrap()
    }

    /// Loads and warms up the model as the engine does.
    fn ready(self, way: Way) -> Box<dyn Model> {
        let mut model = self.load(way);
        model.prepare(TASK, &self.task()).unwrap();
        let image = pixels(&*model, &rgb_images()[..1]).remove(0);
        let options = ModelOptions { max_batch: 4, ..way.options() };
        for batch in model.warm_up_batches(&options) {
            model.warm_up(TASK, &vec![&image; batch]).unwrap();
        }
        model
    }

    fn task(self) -> TaskSpec {
        let prompts = ["no road work", "road work", "a stop sign", "a dog"];
        let labels = (0..self.labels).map(|label| {
            let prompt = prompts[label % prompts.len()];
            // A trained head knows its labels by name.
            let name = if self.labels == 2 { prompt.to_owned() } else { label.to_string() };
            (name, vec![prompt.to_owned(), format!("a photo of {prompt}, {label}")])
        });
        TaskSpec {
            task: "roadwork".to_owned(),
            question: QUESTION.to_owned(),
            labels: labels.collect(),
            answers: ["NO", "YES"].iter().cycle().take(self.labels).map(|text| (*text).to_owned()).collect(),
            head: self.head.map(PathBuf::from),
        }
    }
}

/// Returns four images of one size, then one of another.
fn rgb_images() -> Vec<RgbImage> {
    let read = |name: &str| {
        let path = fixture("molmo2").join(format!("images/{name}.png"));
        decode(&fs::read(path).unwrap(), ImageLimits::default()).unwrap()
    };
    let first = read("landscape");
    let others = [flip_horizontal(&first), flip_vertical(&first), rotate180(&first), read("portrait")];
    std::iter::once(first).chain(others).collect()
}

fn pixels(model: &dyn Model, images: &[RgbImage]) -> Vec<Pixels> {
    images.iter().map(|image| model.info().preprocessor.apply(image).unwrap()).collect()
}

fn votes(model: &dyn Model, images: &[Pixels]) -> Vec<Vec<f32>> {
    let scores = model.classify(TASK, &images.iter().collect::<Vec<_>>()).unwrap();
    scores.into_iter().map(|scores| scores.logits).collect()
}

/// Asserts that votes are near the expected ones, and that the best label is the same where its lead exceeds
/// the error of both.
fn assert_same_votes(ours: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let scale = expected.iter().flatten().fold(0.0_f64, |most, &logit| most.max(f64::from(logit.abs())));
    let allowed = tolerance * scale;
    for (row, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        let error = ours.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(error <= allowed, "{what}, image {row}: {ours:?}, expected {expected:?} ± {allowed}");
        let mut sorted = expected.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let is_clear = f64::from(sorted[0] - sorted[1]) > 2.0 * allowed;
        assert!(!is_clear || best(ours) == best(expected), "{what}, image {row}: {ours:?}, {expected:?}");
    }
}

fn best(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[test]
fn fixtures_agree_in_fp32_eagerly_and_by_graphs() {
    let Some(_gpu) = gpu() else { return };
    let before = graph_fallbacks();
    let mut misses: Vec<(String, bool, Comparison)> = Vec::new();
    for name in fixtures() {
        for way in [EAGER, REPLAYED] {
            let comparisons = check_with(&fixture(&name), way.options()).unwrap();
            assert!(comparisons.len() >= 14, "{name}: only {} comparisons", comparisons.len());
            let missed = comparisons.into_iter().filter(|comparison| !comparison.passes());
            misses.extend(missed.map(|comparison| (name.clone(), way.graphs, comparison)));
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
    assert_eq!(graph_fallbacks(), before);
}

/// Returns the tensors of a fixture as a model computes them, except for those that depend on its own
/// generated text.
fn reproduced(name: &str, way: Way) -> BTreeMap<String, Tensor> {
    let architecture = name.split('_').next().unwrap().to_owned();
    let snapshot = fixture(name).join("snapshot");
    let model = load_model(&ModelOptions { architecture, snapshot, ..way.options() }, Path::new("")).unwrap();
    let stream = Stream::new(model.info().placement.device).unwrap();
    let _current = stream.enter().unwrap();
    let outputs = model.parity_outputs(&Fixture::open(&fixture(name)).unwrap()).unwrap();
    let is_read = |name: &str| !name.contains("greedy") && !name.contains("beam");
    let outputs = outputs.into_iter().filter(|(name, x)| is_read(name) && x.is_floating_point());
    outputs.map(|(name, x)| (name, x.to_device(Device::Cpu).to_kind(Kind::Double))).collect()
}

#[test]
fn tensors_in_bf16_are_near_those_in_fp32() {
    let Some(_gpu) = gpu() else { return };
    let mut misses = Vec::new();
    for name in fixtures() {
        let expected = reproduced(&name, EAGER);
        for way in HALF {
            let ours = reproduced(&name, way);
            assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (tensor, expected) in &expected {
                let largest = |x: &Tensor| x.abs().max().double_value(&[]);
                let error = largest(&(&ours[tensor] - expected)) / largest(expected);
                if error.is_nan() || error > BF16_TOLERANCE {
                    misses.push((name.clone(), way, tensor.clone(), error));
                }
            }
        }
    }
    assert!(misses.is_empty(), "{misses:#?}");
}

/// Three images fill a bucket of four; five are of two layouts.
#[test]
fn votes_by_graphs_and_in_bf16_are_those_of_eager_fp32() {
    let Some(_gpu) = gpu() else { return };
    let (before, inputs) = (graph_fallbacks(), rgb_images());
    for voter in VOTERS {
        let stream = Stream::new(Device::Cuda(0)).unwrap();
        let _current = stream.enter().unwrap();
        let reference = voter.ready(EAGER);
        let images = pixels(&*reference, &inputs);
        let alone: Vec<Vec<f32>> = images.chunks(1).flat_map(|image| votes(&*reference, image)).collect();
        for (way, tolerance) in [(EAGER, FP32_TOLERANCE), (REPLAYED, FP32_TOLERANCE)]
            .into_iter()
            .chain(HALF.map(|way| (way, BF16_TOLERANCE)))
        {
            let model = voter.ready(way);
            // The later sizes reuse buffers that hold data of the earlier ones.
            for batch in [1, 3, 4, 5, 3, 1] {
                let what = format!("{voter:?} {way:?}, batch of {batch}");
                assert_same_votes(&votes(&*model, &images[..batch]), &alone[..batch], tolerance, &what);
            }
        }
    }
    assert_eq!(graph_fallbacks(), before);
}

fn written(model: &dyn Model, image: &Pixels, prompt: &str) -> Generated {
    let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: 24 };
    let generator = model.generator().unwrap();
    generator.generate(image, &request, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn texts_by_graphs_are_those_without() {
    let Some(_gpu) = gpu() else { return };
    let (before, inputs) = (graph_fallbacks(), rgb_images());
    for (voter, prompts) in [
        (voter("florence2", "nano/florence2"), ["<CAPTION>", "<OD>"]),
        (voter("florence2", "tests/fixtures/parity/florence2/snapshot"), ["<CAPTION>", "<OD>"]),
        (NANO_MOLMO2, [QUESTION, "What is it?"]),
        (voter("molmo2", "tests/fixtures/parity/molmo2/snapshot"), [QUESTION, "What is it?"]),
    ] {
        let stream = Stream::new(Device::Cuda(0)).unwrap();
        let _current = stream.enter().unwrap();
        let [eager, replayed] = [EAGER, REPLAYED].map(|way| voter.load(way));
        for image in pixels(&*eager, &inputs) {
            for prompt in prompts {
                let expected = written(&*eager, &image, prompt);
                // Runs without graphs first, then captures, then replays in buffers that held the same text.
                for _ in 0..2 {
                    assert_eq!(written(&*replayed, &image, prompt), expected, "{voter:?} {prompt}");
                }
            }
        }
    }
    assert_eq!(graph_fallbacks(), before);
}

#[test]
fn two_models_on_two_streams_say_the_same_as_alone() {
    let Some(_gpu) = gpu() else { return };
    let (before, alone) = (graph_fallbacks(), Mutex::new(()));
    let ((to_second, from_first), (to_first, from_second)) = (channel(), channel());
    let run = |voter: Voter, is_ready: &dyn Fn(), wait: &dyn Fn()| {
        let stream = Stream::new(Device::Cuda(0)).unwrap();
        let _current = stream.enter().unwrap();
        let (model, images, expected) = {
            let _alone = alone.lock().unwrap();
            let model = voter.ready(REPLAYED);
            let images = pixels(&*model, &rgb_images());
            // The shapes that were not warmed up are captured in the first run.
            let _recorded = votes(&*model, &images);
            let expected = votes(&*model, &images);
            (model, images, expected)
        };
        is_ready();
        wait();
        for round in 0..50 {
            let what = format!("{voter:?} beside the other, round {round}");
            assert_same_votes(&votes(&*model, &images), &expected, 1e-6, &what);
        }
    };
    std::thread::scope(|scope| {
        let run = &run;
        // When one fails, its end of the channel is dropped and the other stops.
        scope.spawn(move || {
            run(NANO_DINOV3, &|| to_second.send(()).unwrap(), &|| from_second.recv().unwrap());
        });
        scope.spawn(move || {
            run(NANO_MOLMO2, &|| to_first.send(()).unwrap(), &|| from_first.recv().unwrap());
        });
    });
    assert_eq!(graph_fallbacks(), before);
}
