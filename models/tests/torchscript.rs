//! Tests that a traced module votes like any other model.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::path::Path;

use concord_models::{
    Architecture, Model, ModelError, ModelOptions, OptionTable, RgbImage, TaskId, TaskSpec, load_model,
    snapshot_digest,
};
use tch::{CModule, Device, Kind, Tensor};

const TASK: TaskId = TaskId(1);

/// Writes a module that returns two values for each image: its darkness and its brightness.
fn module(folder: &Path, probabilities: bool) {
    let example = Tensor::zeros([1, 3, 8, 6], (Kind::Float, Device::Cpu));
    let mut forward = |inputs: &[Tensor]| {
        let bright = inputs[0].mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Float);
        let both = Tensor::stack(&[1.0 - &bright, bright], 1);
        vec![if probabilities { both } else { both * 4.0 }]
    };
    CModule::create_by_tracing("module", "forward", &[example], &mut forward)
        .unwrap()
        .save(folder.join("model.pt"))
        .unwrap();
}

/// Returns the architecture's own options, as read from a configuration.
fn own(architecture: &str, given: &serde_json::Value) -> OptionTable {
    let (own, faults) = Architecture::by_name(architecture).unwrap().read_options(given.as_object().unwrap());
    assert!(faults.is_empty(), "{faults:?}");
    own
}

fn load(folder: &Path, output: &str) -> Result<Box<dyn Model>, ModelError> {
    let input = serde_json::json!({ "height": 8, "width": 6, "mean": [0, 0, 0], "std": [1, 1, 1] });
    let given = serde_json::json!({ "input": input, "output": output });
    let options = ModelOptions {
        architecture: "torchscript".to_owned(),
        snapshot: folder.to_owned(),
        device: "cpu".to_owned(),
        own: own("torchscript", &given),
        ..ModelOptions::default()
    };
    load_model(&options, Path::new(""))
}

fn task(labels: usize) -> TaskSpec {
    TaskSpec {
        task: "light".to_owned(),
        question: "Is it bright?".to_owned(),
        labels: (0..labels).map(|label| (label.to_string(), Vec::new())).collect(),
        answers: vec![String::new(); labels],
        head: None,
    }
}

#[test]
fn logits_and_probabilities_become_votes() {
    for (output, expected) in
        [("logits", [0.8 * 4.0, 0.2 * 4.0]), ("probabilities", [0.8_f32.ln(), 0.2_f32.ln()])]
    {
        let folder = tempfile::tempdir().unwrap();
        module(folder.path(), output == "probabilities");
        let mut model = load(folder.path(), output).unwrap();
        model.prepare(TASK, &task(2)).unwrap();
        let images =
            [RgbImage::from_pixel(31, 17, [51; 3].into()), RgbImage::from_pixel(3, 200, [255; 3].into())];
        let pixels = images.map(|image| model.info().preprocessor.apply(&image).unwrap());
        let votes = model.classify(TASK, &pixels.iter().collect::<Vec<_>>()).unwrap();
        for (logit, expected) in votes[0].logits.iter().zip(expected) {
            assert!((logit - expected).abs() < 1e-5, "{output}: {votes:?}");
        }
        assert!(
            votes[1].logits.iter().all(|logit| logit.is_finite()),
            "a probability of 0 has a logit all the same"
        );
    }
}

#[test]
fn what_does_not_fit_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let missing = load(folder.path(), "logits").unwrap_err().to_string();
    assert!(missing.contains("config.json") || missing.contains("model.pt"), "{missing}");
    module(folder.path(), false);
    let mut model = load(folder.path(), "logits").unwrap();
    model.prepare(TASK, &task(3)).unwrap();
    let pixels = model.info().preprocessor.apply(&RgbImage::new(5, 5)).unwrap();
    let error = model.classify(TASK, &[&pixels]).unwrap_err().to_string();
    assert!(error.contains("[1, 2]") && error.contains("[1, 3]"), "{error}");
    assert!(model.classify(TaskId(7), &[&pixels]).is_err());
    std::fs::write(folder.path().join("model.pt"), "no module").unwrap();
    assert!(load(folder.path(), "logits").is_err());
}

#[test]
fn the_digest_is_the_modules() {
    let folder = tempfile::tempdir().unwrap();
    module(folder.path(), false);
    let first = snapshot_digest(folder.path(), Path::new("")).unwrap();
    module(folder.path(), true);
    assert_ne!(snapshot_digest(folder.path(), Path::new("")).unwrap(), first);
}
