//! Tests the agreement with Hugging Face transformers on small committed fixtures, and that of batches with
//! single runs.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::path::{Path, PathBuf};

use concord_models::parity::{Comparison, check};
use concord_models::{ImageLimits, ModelOptions, Pixels, TaskId, TaskSpec, decode, load_model};

/// Returns every folder with a fixture, so that a new architecture is tested as soon as it has one.
fn fixtures() -> Vec<String> {
    let folders = std::fs::read_dir(folder("")).unwrap();
    let mut names: Vec<String> =
        folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name)
}

#[test]
fn every_tensor_agrees_with_the_reference() {
    for name in fixtures() {
        let comparisons = check(&folder(&name), "cpu").unwrap();
        assert!(comparisons.len() >= 14, "{name}: only {} comparisons", comparisons.len());
        let misses: Vec<&Comparison> = comparisons.iter().filter(|comparison| !comparison.passes()).collect();
        assert!(misses.is_empty(), "{name}: {misses:#?}");
    }
}

/// Returns a copy of a fixture that a test may change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for part in ["", "images", "snapshot"] {
        std::fs::create_dir_all(copy.path().join(part)).unwrap();
        for entry in std::fs::read_dir(folder(name).join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, copy.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

/// Saved tokenizers keep the truncation and padding of their last use; SigLIP2's texts are padded by this
/// crate.
#[test]
fn padding_and_truncation_in_tokenizer_json_change_nothing() {
    let copy = copy_of("siglip2");
    let file = copy.path().join("snapshot/tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    tokenizer["padding"] = serde_json::json!({
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    });
    tokenizer["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    let comparisons = check(copy.path(), "cpu").unwrap();
    assert!(comparisons.iter().all(Comparison::passes), "{comparisons:#?}");
}

#[test]
fn a_fixture_of_inputs_alone_proves_nothing() {
    let copy = copy_of("siglip2");
    let file = copy.path().join("expected.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let inputs = all.iter().filter(|(name, _)| matches!(*name, "input_ids" | "pixel_values"));
    std::fs::write(&file, safetensors::serialize(inputs, None).unwrap()).unwrap();
    let missing =
        check(copy.path(), "cpu").unwrap().into_iter().filter(|comparison| !comparison.passes()).count();
    assert!(missing >= 8, "only {missing} are missed");
}

#[test]
fn a_malformed_fixture_is_an_error() {
    let copy = copy_of("siglip2");
    let file = copy.path().join("expected.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let wrong = [99_999_i64; 6].map(i64::to_le_bytes).concat();
    let ids = safetensors::tensor::TensorView::new(safetensors::Dtype::I64, vec![2, 3], &wrong).unwrap();
    let replaced =
        all.iter().map(|(name, view)| if name == "input_ids" { (name, ids.clone()) } else { (name, view) });
    let changed = safetensors::serialize(replaced, None).unwrap();
    std::fs::write(&file, changed).unwrap();
    assert!(check(copy.path(), "cpu").unwrap_err().to_string().contains("libtorch refused"));
}

#[test]
fn a_changed_weight_is_noticed() {
    let copy = copy_of("siglip2");
    let snapshot = copy.path().join("snapshot");
    let weights = snapshot.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&3.0_f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    assert!(check(copy.path(), "cpu").unwrap().iter().any(|comparison| !comparison.passes()));
}

/// Stacking images must not change the output for each of them.
#[test]
fn a_batch_of_n_equals_n_single_runs() {
    for (name, head, images) in [
        ("dinov3_vit", Some("classifier_head.safetensors"), ["landscape", "portrait"].as_slice()),
        ("siglip2", None, &["landscape", "portrait"]),
        ("siglip2_naflex", None, &["landscape", "portrait", "banner"]),
        ("molmo2", None, &["landscape", "portrait"]),
    ] {
        let mut model = load_model(
            &ModelOptions {
                architecture: name.split('_').next().unwrap().to_owned(),
                snapshot: folder(name).join("snapshot"),
                device: "cpu".to_owned(),
                ..ModelOptions::default()
            },
            Path::new(""),
        )
        .unwrap();
        let labels = (0..10)
            .map(|digit| (digit.to_string(), vec![format!("a photo of {digit}"), format!("{digit} cats")]));
        let task = TaskSpec {
            task: "digits".to_owned(),
            question: "Which digit?".to_owned(),
            labels: labels.collect(),
            answers: (0..10).map(|digit| digit.to_string()).collect(),
            head: head.map(PathBuf::from),
        };
        model.prepare(TaskId(1), &task).unwrap();
        let pixels: Vec<Pixels> = images
            .iter()
            .map(|image| {
                let bytes = std::fs::read(folder(name).join(format!("images/{image}.png"))).unwrap();
                model.info().preprocessor.apply(&decode(&bytes, ImageLimits::default()).unwrap()).unwrap()
            })
            .collect();
        let together = model.classify(TaskId(1), &pixels.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(together.len(), images.len());
        for (image, (alone, in_batch)) in images.iter().zip(pixels.iter().zip(&together)) {
            let alone = &model.classify(TaskId(1), &[alone]).unwrap()[0].logits;
            assert_eq!(alone.len(), 10, "{name} {image}");
            for (a, b) in alone.iter().zip(&in_batch.logits) {
                assert!((a - b).abs() < 1e-4, "{name} {image}: alone {alone:?}, in a batch {in_batch:?}");
            }
        }
    }
}
