//! Tests the built-in snapshots with random weights.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use concord_models::presets::{PRESETS, Preset};
use concord_models::{Architecture, ModelOptions, RgbImage, TaskId, load_random};

/// Returns the logits of a preset for one image.
fn logits(name: &str, seed: i64) -> Vec<f32> {
    let preset = Preset::by_name(name).unwrap();
    let folder = tempfile::tempdir().unwrap();
    preset.write(folder.path()).unwrap();
    let options = ModelOptions {
        architecture: preset.architecture.to_owned(),
        device: "cpu".to_owned(),
        ..ModelOptions::default()
    };
    let mut model = load_random(&options, folder.path(), seed).unwrap();
    model.prepare(TaskId(1), &preset.task()).unwrap();
    let pixels = model.info().preprocessor.apply(&RgbImage::new(100, 80)).unwrap();
    model.classify(TaskId(1), &[&pixels]).unwrap().remove(0).logits
}

#[test]
fn a_seed_gives_one_model_and_another_seed_another() {
    // In one test, because the random number generator is shared by the whole process.
    for preset in PRESETS.iter().filter(|preset| preset.name.ends_with("-tiny")) {
        let first = logits(preset.name, 1);
        assert!(first.iter().all(|logit| logit.is_finite()), "{}: {first:?}", preset.name);
        assert_eq!(first, logits(preset.name, 1), "{}", preset.name);
        assert_ne!(first, logits(preset.name, 2), "{}", preset.name);
    }
}

#[test]
fn every_preset_has_an_architecture_and_files() {
    for preset in PRESETS {
        let architecture = Architecture::by_name(preset.architecture).unwrap();
        let folder = tempfile::tempdir().unwrap();
        preset.write(folder.path()).unwrap();
        let config = std::fs::read(folder.path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let model_type = config["model_type"].as_str().unwrap();
        assert!(architecture.model_types.contains(&model_type), "{}: {model_type}", preset.name);
        let of_that_name = PRESETS.iter().filter(|other| other.name == preset.name);
        assert_eq!(of_that_name.count(), 1, "{}", preset.name);
    }
}
