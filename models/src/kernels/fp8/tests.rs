//! Tests of fp8 rows and products against exact ones, and of whole models: on the CPU by the eager twins, and
//! on a GPU that supports fp8.

use std::path::{Path, PathBuf};

use concord_policy::ModelOutput;
use tch::{Device, Kind, Tensor};

use super::{Fp8Rows, Fp8Weights, LARGEST, fits};
use crate::ModelError;
use crate::architectures::architecture::Architecture;
use crate::architectures::memory::MemoryEstimate;
use crate::architectures::registry::load_model;
use crate::image::decode::decode;
use crate::image::limits::ImageLimits;
use crate::kernels::tests::{assert_close, devices, random};
use crate::kernels::{Gelu, Norm, Prologue, add_norm, add_norm_quantised, gelu, quantised};
use crate::libtorch::Stream;
use crate::model::Model;
use crate::nn::layers::Linear;
use crate::nn::norm::LayerNorm;
use crate::nn::quantized_linear::QuantLinear;
use crate::options::ModelOptions;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::weights::WeightLoader;
use crate::task::{TaskId, TaskSpec};

const COMPUTED_IN: [(Kind, f64); 3] = [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2), (Kind::Half, 2e-3)];
const ON_CPU: Placement = Placement { device: Device::Cpu, kind: Kind::Float8e4m3fn };

/// Returns the CPU, where the eager twins run, and the GPUs whose tensor cores multiply fp8.
fn places() -> Vec<Placement> {
    let dinov3 = Architecture::by_name("dinov3").unwrap();
    let here = |device| Placement { device, ..ON_CPU };
    let can = |place: &Placement| {
        let can = place.device == Device::Cpu
            || crate::architectures::registry::check_placement(dinov3, *place).is_ok();
        if !can {
            eprintln!("skipped on {:?}: it has no fp8", place.device);
        }
        can
    };
    devices().into_iter().map(here).filter(can).collect()
}

/// Asserts that the values are the same, but for a few that are one step of e4m3 off.
fn assert_same_rows(ours: &Fp8Rows, expected: &Fp8Rows, what: &str) {
    assert_close(&ours.scales, &expected.scales, 1e-2, what);
    let (ours, expected) = (ours.values.to_kind(Kind::Float), expected.values.to_kind(Kind::Float));
    assert_eq!(ours.size(), expected.size(), "{what}");
    let difference = (&ours - &expected).abs();
    let share = difference.gt(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!(share <= 0.02, "{what}: {share} differ");
    let steps: Tensor = difference / (expected.abs() / 8.0).clamp_min(2f64.powi(-9));
    assert!(steps.max().double_value(&[]) <= 1.01, "{what}: more than a step");
}

#[test]
fn a_row_keeps_its_values_within_half_a_step() {
    for place in places() {
        // The rows have very different magnitudes, and one of them is all zeros.
        let sizes = Tensor::from_slice(&[1e-6f32, 1.0, 3e4, 0.0]).unsqueeze(1).to_device(place.device);
        let x = random(&[4, 256], Kind::Float, place.device) * sizes;
        let rows = Fp8Rows::of(&x);
        assert_eq!((rows.values.kind(), rows.values.size()), (Kind::Float8e4m3fn, vec![4, 256]));
        assert_eq!(rows.scales.size(), [4, 1]);
        let error = (rows.widened() - &x).abs();
        let allowed: Tensor = x.abs() / 16.0 * 1.001 + &rows.scales * 2f64.powi(-10);
        assert!(bool::try_from(error.le_tensor(&allowed).all()).unwrap(), "{:?}", place.device);
        let largest = rows.values.to_kind(Kind::Float).abs().amax([1].as_slice(), false);
        let expected = Tensor::from_slice(&[LARGEST, LARGEST, LARGEST, 0.0]).to_device(place.device);
        assert!(largest.to_kind(Kind::Double).equal(&expected), "{largest}");
    }
}

#[test]
fn kernels_quantise_as_their_twins() {
    for place in places() {
        let stream = Stream::new(place.device).unwrap();
        let _current = stream.enter().unwrap();
        for (kind, _) in COMPUTED_IN {
            // The widths are rows of one pack a thread, of several packs, of no whole number of packs, and of
            // more than a block keeps.
            for width in [64, 1152, 4304, 12_288, 130, 40_000] {
                let x = random(&[2, 3, width], kind, place.device) * 2.0;
                let what = format!("{:?} {kind:?} {width}", place.device);
                let ours = quantised(x.copy(), Prologue::Nothing);
                assert_same_rows(&ours, &Fp8Rows::of(&x), &what);
                for form in [Gelu::Exact, Gelu::Tanh] {
                    let ours = quantised(x.copy(), Prologue::Gelu(form));
                    let what = format!("{what} {form:?}");
                    assert_same_rows(&ours, &Fp8Rows::of(&gelu(x.copy(), form)), &what);
                }
            }
        }
    }
}

#[test]
fn a_residual_is_added_with_its_norm_in_fp8() {
    for place in places() {
        let stream = Stream::new(place.device).unwrap();
        let _current = stream.enter().unwrap();
        for (kind, allowed) in COMPUTED_IN {
            for width in [64, 1152, 130] {
                let tensor = |size: &[i64]| random(size, kind, place.device);
                let (residual, x, scale) = (tensor(&[2, 5, width]), tensor(&[2, 5, width]), tensor(&[width]));
                let norm = LayerNorm { weight: tensor(&[width]), bias: tensor(&[width]), eps: 1e-6 };
                for scale in [None, Some(&scale)] {
                    let what = format!("{:?} {kind:?} {width}", place.device);
                    let (sum, rows) = add_norm_quantised(&residual, &x, scale, Norm::Layer(&norm));
                    let (expected, normed) = add_norm(&residual, &x, scale, Norm::Layer(&norm));
                    assert_close(&sum, &expected, allowed, &what);
                    assert_same_rows(&rows, &Fp8Rows::of(&normed), &what);
                }
            }
        }
    }
}

#[test]
fn a_product_is_that_of_the_rounded_values() {
    for place in places() {
        let stream = Stream::new(place.device).unwrap();
        let _current = stream.enter().unwrap();
        for (inputs, outputs) in [(128, 480), (1152, 3456), (4304, 1152)] {
            for rows in [1, 5, 64, 581] {
                let tensor = |size: &[i64]| random(size, Kind::BFloat16, place.device);
                let (x, weight, bias) =
                    (tensor(&[rows, inputs]), tensor(&[outputs, inputs]), tensor(&[outputs]));
                let (x, weights) = (Fp8Rows::of(&x), Fp8Weights::of(&weight).unwrap());
                let exact = x.widened().matmul(&Fp8Rows::of(&weight).widened().tr());
                for bias in [None, Some(&bias)] {
                    let what = format!("{:?} {rows} · {inputs} · {outputs} {}", place.device, bias.is_some());
                    let ours = weights.multiply(&x, bias);
                    assert_eq!(ours.kind(), Kind::BFloat16);
                    let expected = bias.map_or_else(|| exact.shallow_clone(), |bias| &exact + bias);
                    // The error is that of the last rounding and of sums that are rounded on the way.
                    assert_close(&ours, &expected, 1e-2, &what);
                }
            }
        }
    }
}

#[test]
fn a_map_that_tensor_cores_do_not_take_stays_as_it_is() {
    assert!(fits(&[32, 16]));
    assert!([&[32, 24][..], &[8, 16], &[16], &[0, 16], &[16, 16, 16]].iter().all(|shape| !fits(shape)));
    for (is_wanted, inputs, is_fp8) in [(true, 32, true), (true, 24, false), (false, 32, false)] {
        let weight = random(&[48, inputs], Kind::BFloat16, Device::Cpu);
        let mut loader = loader_with(is_wanted);
        let product = QuantLinear::of(Linear::from_tensors(weight.shallow_clone(), None), &loader);
        assert_eq!(matches!(product, QuantLinear::Fp8 { .. }), is_fp8, "{inputs}");
        let inner = Linear::from_tensors(weight, None);
        assert!(matches!(loader.without_fp8(|loader| QuantLinear::of(inner, loader)), QuantLinear::Plain(_)));
        assert_eq!(loader.fp8_products(), is_wanted);
    }
}

fn loader_with(fp8: bool) -> WeightLoader {
    WeightLoader::random(Path::new(""), 0, Device::Cpu, Kind::BFloat16).unwrap().with_fp8_products(fp8)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn options(architecture: &str, device: Device, dtype: &str) -> ModelOptions {
    ModelOptions {
        architecture: architecture.to_owned(),
        snapshot: root().join("models/nano").join(architecture),
        device: crate::device_name(device),
        dtype: dtype.to_owned(),
        graphs: true,
        ..ModelOptions::default()
    }
}

/// Loads a model as `load_model` does, but also on the CPU, where `load_model` refuses the eager twins.
fn load(architecture: &str, place: Placement) -> Box<dyn Model> {
    let options = options(architecture, place.device, "fp8");
    if place.device != Device::Cpu {
        return load_model(&options, Path::new("")).unwrap();
    }
    let snapshot = Snapshot::open(&options.snapshot).unwrap();
    (Architecture::by_name(architecture).unwrap().load)(&snapshot, &options, place).unwrap()
}

fn answers(model: &mut dyn Model, batch: usize) -> Vec<ModelOutput> {
    let label = |label: &str| (label.to_owned(), vec![format!("a photo of a {label} traffic sign")]);
    let task = TaskSpec {
        task: "roadwork".to_owned(),
        question: "Is there active road construction in this image?".to_owned(),
        labels: vec![label("no road work"), label("road work")],
        answers: vec!["NO".to_owned(), "YES".to_owned()],
        head: Some("head.roadwork.safetensors".into()),
    };
    model.prepare(TaskId(1), &task).unwrap();
    let files =
        ["road-work-clear.jpg", "road-work-dusk.jpg", "speed-limit-50.jpg", "camera.png", "coffee.png"];
    let pixels: Vec<_> = files
        .iter()
        .map(|file| {
            let bytes = std::fs::read(root().join("assets").join(file)).unwrap();
            model.info().preprocessor.apply(&decode(&bytes, ImageLimits::default()).unwrap()).unwrap()
        })
        .collect();
    let images: Vec<_> = pixels.iter().collect();
    images.chunks(batch).flat_map(|images| model.classify(TaskId(1), images).unwrap()).collect()
}

/// Returns the probability of the second label.
fn probability(scores: &ModelOutput) -> f32 {
    1.0 / (1.0 + (scores.logits[0] - scores.logits[1]).exp())
}

#[test]
fn models_answer_in_fp8_as_in_fp32() {
    for place in places() {
        for architecture in ["dinov3", "siglip2", "molmo2"] {
            let exact = options(architecture, Device::Cpu, "fp32");
            let expected = answers(load_model(&exact, Path::new("")).unwrap().as_mut(), 5);
            let stream = Stream::new(place.device).unwrap();
            let _current = stream.enter().unwrap();
            let mut model = load(architecture, place);
            assert_eq!(model.info().placement.kind, Kind::Float8e4m3fn);
            // The eager twins are slow, and have no graphs to which batches are padded.
            let batches: &[usize] = if place.device == Device::Cpu { &[5] } else { &[5, 2, 1] };
            for &batch in batches {
                for (ours, expected) in answers(model.as_mut(), batch).iter().zip(&expected) {
                    let (ours, expected) = (probability(ours), probability(expected));
                    let what = format!("{:?} {architecture} by {batch}: {ours} for {expected}", place.device);
                    assert!((ours - expected).abs() < 0.1, "{what}");
                }
            }
        }
    }
    assert_eq!(crate::graph_fallbacks(), 0);
}

#[test]
fn fp8_is_refused_where_it_cannot_be() {
    for (architecture, reason) in [
        ("dinov3", "needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and this model is on cpu"),
        ("siglip2", "needs a GPU of compute capability 8.9"),
        ("florence2", "\"fp8\" is not for architecture florence2: choose \"bf16\""),
    ] {
        let refused = load_model(&options(architecture, Device::Cpu, "fp8"), Path::new(""));
        let Err(ModelError::Unsupported(message)) = refused else { panic!("{architecture}: {refused:?}") };
        assert!(message.contains(reason), "{message}");
    }
}

#[test]
fn less_memory_is_estimated_for_fp8() {
    for (architecture, allowed) in [("dinov3", 0.5..0.6), ("siglip2", 0.5..0.9), ("molmo2", 0.5..0.95)] {
        let estimate = |dtype: &str| {
            MemoryEstimate::of(&options(architecture, Device::Cpu, dtype), Path::new("")).unwrap()
        };
        let (fp8, bf16) = (estimate("fp8"), estimate("bf16"));
        let ratio = fp8.parameter_bytes as f64 / bf16.parameter_bytes as f64;
        assert!(allowed.contains(&ratio), "{architecture}: {ratio}");
        assert_eq!(fp8.activation_bytes, bf16.activation_bytes);
    }
}
