//! Tests that a new architecture loads, votes, agrees with its fixture, and puts its option into the cache
//! keys.

use std::path::Path;

use ::image::RgbImage;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::architectures::architecture::Architecture;
use crate::architectures::memory::MemoryEstimate;
use crate::architectures::registry::load_model;
use crate::options::ModelOptions;
use crate::parity::{Comparison, check};
use crate::task::{TaskId, TaskSpec};

const TASK: TaskId = TaskId(1);
const SLOPE: f64 = 4.0;
const GREY: u8 = 204;

fn write(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Creates a fixture folder as the fixture script does: a snapshot, images, and the expected tensors.
fn fixture() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = folder.path().join("snapshot");
    for part in [&snapshot, &folder.path().join("images")] {
        std::fs::create_dir(part).unwrap();
    }
    write(&snapshot.join("config.json"), &json!({ "model_type": "brightness", "threshold": 0.5 }));
    let preprocessor = json!({
        "image_processor_type": "SiglipImageProcessor", "size": { "height": 8, "width": 8 },
        "image_mean": [0, 0, 0], "image_std": [1, 1, 1],
    });
    write(&snapshot.join("preprocessor_config.json"), &preprocessor);
    let slope = Tensor::full([1], SLOPE, (Kind::Float, Device::Cpu));
    Tensor::write_safetensors(&[("slope", slope)], snapshot.join("model.safetensors")).unwrap();
    RgbImage::from_pixel(8, 8, [GREY; 3].into()).save(folder.path().join("images/grey.png")).unwrap();
    write(&folder.path().join("meta.json"), &json!({ "dtype": "float32", "noise": {} }));
    let value = f64::from(GREY) / 255.0;
    let bright = ((value - 0.5) * SLOPE) as f32;
    let pixels = Tensor::full([1, 3, 8, 8], value, (Kind::Float, Device::Cpu));
    let logits = Tensor::from_slice(&[-bright, bright]).view([1, 2]);
    let expected = folder.path().join("expected.safetensors");
    Tensor::write_safetensors(&[("pixel_values", pixels), ("logits", logits)], expected).unwrap();
    folder
}

fn options(folder: &Path, given: &Value) -> ModelOptions {
    let architecture = Architecture::by_name("brightness").unwrap();
    let (own, faults) = architecture.read_options(given.as_object().unwrap());
    assert_eq!(faults, []);
    ModelOptions {
        architecture: "brightness".to_owned(),
        snapshot: folder.join("snapshot"),
        device: "cpu".to_owned(),
        own,
        ..ModelOptions::default()
    }
}

fn logits(options: &ModelOptions) -> Vec<f32> {
    let mut model = load_model(options, Path::new("")).unwrap();
    let task = TaskSpec {
        task: "light".to_owned(),
        question: "Is it bright?".to_owned(),
        labels: ["dark", "bright"].map(|label| (label.to_owned(), Vec::new())).to_vec(),
        answers: vec![String::new(); 2],
        head: None,
    };
    model.prepare(TASK, &task).unwrap();
    let pixels = model.info().preprocessor.apply(&RgbImage::from_pixel(20, 10, [GREY; 3].into())).unwrap();
    model.classify(TASK, &[&pixels]).unwrap().remove(0).logits
}

#[test]
fn it_agrees_with_its_fixture() {
    let folder = fixture();
    let comparisons = check(folder.path(), "cpu").unwrap();
    assert!(comparisons.len() >= 2 && comparisons.iter().all(Comparison::passes), "{comparisons:#?}");
}

#[test]
fn it_loads_by_its_name_and_votes_with_its_option() {
    let folder = fixture();
    let (plain, louder) = (options(folder.path(), &json!({})), options(folder.path(), &json!({ "gain": 3 })));
    let (once, thrice) = (logits(&plain), logits(&louder));
    assert!(once[1] > 1.0, "{once:?}");
    assert!((thrice[1] - 3.0 * once[1]).abs() < 1e-4, "{once:?} {thrice:?}");
    assert_ne!(plain.own.key_material(), louder.own.key_material());
    assert!(MemoryEstimate::of(&plain, Path::new("")).unwrap().parameter_bytes >= 4);
}
