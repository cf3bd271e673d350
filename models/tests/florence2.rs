//! Tests Florence-2 on its committed parity fixture: votes, answers, both layouts of the weights, and broken
//! snapshots.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use concord_models::parity::{Comparison, check};
use concord_models::{
    Architecture, GenerateRequest, Generated, ImageLimits, Model, ModelError, ModelOptions, OptionProblem,
    OptionTable, Pixels, TaskId, TaskSpec, decode, load_model,
};
use concord_policy::Shape;

/// The width and height of the fixture's image.
const IMAGE_SIZE: [f32; 2] = [100.0, 74.0];

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/florence2")
}

/// Returns a copy of the fixture that a test may change.
fn copy() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for part in ["", "images", "snapshot"] {
        std::fs::create_dir_all(copy.path().join(part)).unwrap();
        for entry in std::fs::read_dir(fixture().join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, copy.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

/// Returns the architecture's own options, as read from a configuration.
fn own(architecture: &str, given: &serde_json::Value) -> OptionTable {
    let (own, faults) = Architecture::by_name(architecture).unwrap().read_options(given.as_object().unwrap());
    assert!(faults.is_empty(), "{faults:?}");
    own
}

fn load(folder: &Path, mode: &str, dtype: &str) -> Result<Box<dyn Model>, ModelError> {
    let options = ModelOptions {
        architecture: "florence2".to_owned(),
        snapshot: folder.join("snapshot"),
        device: "cpu".to_owned(),
        dtype: dtype.to_owned(),
        own: own("florence2", &serde_json::json!({ "mode": mode })),
        ..ModelOptions::default()
    };
    load_model(&options, Path::new(""))
}

fn image(model: &dyn Model) -> Pixels {
    let bytes = std::fs::read(fixture().join("images/landscape.png")).unwrap();
    model.info().preprocessor.apply(&decode(&bytes, ImageLimits::default()).unwrap()).unwrap()
}

/// Returns an image other than the fixture's.
fn other_image(model: &dyn Model) -> Pixels {
    let bytes = std::fs::read(fixture().join("images/landscape.png")).unwrap();
    let mut other = decode(&bytes, ImageLimits::default()).unwrap();
    for pixel in other.pixels_mut() {
        pixel.0.reverse();
    }
    model.info().preprocessor.apply(&other).unwrap()
}

fn task() -> TaskSpec {
    let label = |label: &str, prompts: &[&str]| {
        (label.to_owned(), prompts.iter().map(|&prompt| prompt.to_owned()).collect())
    };
    TaskSpec {
        task: "cones".to_owned(),
        question: "Is there a traffic cone?".to_owned(),
        labels: vec![
            label("none", &["a photo of a cat", "two dogs"]),
            label("some", &["0 cats"]),
            label("cone", &["a traffic cone on the road", "cone", "é ü"]),
        ],
        answers: vec!["NONE".to_owned(), "SOME".to_owned(), "CONE".to_owned()],
        head: None,
    }
}

fn assert_close(ours: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), expected.len());
    let close = ours.iter().zip(expected).all(|(ours, expected)| (ours - expected).abs() < tolerance);
    assert!(close, "{ours:?}, expected {expected:?}");
}

/// The results of transformers for the same prompts: mean log-probabilities, and log-odds of a location.
const LIKELIHOODS: [f32; 3] = [-8.431_226, -7.472_837, -7.965_646];
const LOG_ODDS: [f32; 3] = [0.0, 1.113_189, 1.062_556];

#[test]
fn votes_are_those_of_the_reference() {
    for (mode, expected) in [("", LIKELIHOODS), ("likelihood", LIKELIHOODS), ("detect", LOG_ODDS)] {
        let mut model = load(&fixture(), mode, "fp32").unwrap();
        model.prepare(TaskId(1), &task()).unwrap();
        let scores = model.classify(TaskId(1), &[&image(model.as_ref())]).unwrap();
        assert_close(&scores[0].logits, &expected, 1e-4);
    }
}

#[test]
fn a_batch_of_n_equals_n_single_runs() {
    for mode in ["likelihood", "detect"] {
        let mut model = load(&fixture(), mode, "fp32").unwrap();
        model.prepare(TaskId(1), &task()).unwrap();
        let images = [image(model.as_ref()), other_image(model.as_ref()), image(model.as_ref())];
        let together = model.classify(TaskId(1), &images.iter().collect::<Vec<_>>()).unwrap();
        assert_ne!(together[0].logits, together[1].logits, "{mode}");
        for (image, in_batch) in images.iter().zip(&together) {
            let alone = &model.classify(TaskId(1), &[image]).unwrap()[0];
            assert_close(&alone.logits, &in_batch.logits, 1e-4);
            assert_eq!(alone.evidence.regions, in_batch.evidence.regions, "{mode}");
        }
    }
}

#[test]
fn what_is_detected_lies_in_the_image() {
    let mut model = load(&fixture(), "detect", "fp32").unwrap();
    model.prepare(TaskId(1), &task()).unwrap();
    let scores = model.classify(TaskId(1), &[&image(model.as_ref())]).unwrap();
    assert!(!scores[0].evidence.regions.is_empty());
    for region in &*scores[0].evidence.regions {
        assert!(task().labels[1..].iter().any(|(_, prompts)| prompts.contains(&region.label)), "{region:?}");
        let Shape::Box([left, top, right, bottom]) = region.shape else { unreachable!("not a box") };
        let is_inside = 0.0 <= left && left <= right && right < IMAGE_SIZE[0];
        assert!(is_inside && 0.0 <= top && top <= bottom && bottom < IMAGE_SIZE[1], "{region:?}");
    }
}

#[test]
fn half_precision_votes_alike() {
    for (mode, expected) in [("likelihood", LIKELIHOODS), ("detect", LOG_ODDS)] {
        let mut model = load(&fixture(), mode, "bf16").unwrap();
        model.prepare(TaskId(1), &task()).unwrap();
        let scores = model.classify(TaskId(1), &[&image(model.as_ref())]).unwrap();
        assert_close(&scores[0].logits, &expected, 0.1);
    }
}

#[test]
fn a_task_that_cannot_be_asked_is_refused() {
    for (mode, labels, fault) in [
        (
            "likelihood",
            vec![("none".to_owned(), vec!["a".to_owned()]), ("some".to_owned(), vec![])],
            "some has no prompt",
        ),
        ("likelihood", vec![("none".to_owned(), vec!["word ".repeat(100)])], "the decoder's 64 positions"),
        ("detect", vec![("none".to_owned(), vec![])], "a label for absence"),
        ("detect", vec![("none".to_owned(), vec![]), ("some".to_owned(), vec![])], "some has no prompt"),
        (
            "detect",
            vec![("none".to_owned(), vec![]), ("some".to_owned(), vec!["cone ".repeat(40)])],
            "have room",
        ),
    ] {
        let mut model = load(&fixture(), mode, "fp32").unwrap();
        let message = model.prepare(TaskId(1), &TaskSpec { labels, ..task() }).unwrap_err().to_string();
        assert!(message.contains(fault), "{mode}: {message}");
    }
}

fn generate(folder: &Path, prompt: &str) -> (Generated, Vec<String>) {
    let model = load(folder, "", "fp32").unwrap();
    let mut pieces = Vec::new();
    let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: 12 };
    let generated = model
        .generator()
        .unwrap()
        .generate(&image(model.as_ref()), &request, &mut |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        })
        .unwrap();
    (generated, pieces)
}

/// Compares with `generate` and `post_process_generation` of transformers on the same weights.
#[test]
fn texts_and_regions_are_those_of_the_reference() {
    let boxed = |label: &str, sides: [f32; 4]| (label.to_owned(), Shape::Box(sides));
    for (prompt, text, prompt_tokens, regions) in [
        ("<CAPTION>", "", 16, vec![]),
        ("<OD>", "4", 29, vec![boxed("4", [62.0, 53.0, 21.0, 57.0]), boxed("4", [87.0, 20.0, 50.0, 37.0])]),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>a red car",
            "44",
            34,
            vec![boxed("loc_891>4", [39.0, 33.0, 45.0, 33.0])],
        ),
    ] {
        let (generated, pieces) = generate(&fixture(), prompt);
        assert_eq!(generated.text, text);
        assert_eq!(pieces.concat(), text);
        assert_eq!(
            (generated.prompt_tokens, generated.new_tokens, generated.finished),
            (prompt_tokens, 12, false)
        );
        let found: Vec<_> =
            generated.regions.into_iter().map(|region| (region.label, region.shape)).collect();
        assert_eq!(found, regions, "{prompt}");
    }
}

#[test]
fn the_microsoft_layout_gives_the_same() {
    let copy = copy();
    let file = |name: &str| copy.path().join(name);
    std::fs::rename(file("model_microsoft_layout.safetensors"), file("snapshot/model.safetensors")).unwrap();
    // This layout's config.json names some sizes differently, and its tokenizer.json has no task tokens.
    edit(&file("snapshot/config.json"), |config| {
        let vision = config["vision_config"].as_object_mut().unwrap();
        let widths = vision.shift_remove("embed_dim").unwrap();
        vision.insert("dim_embed".to_owned(), widths);
        vision.shift_remove("max_position_embeddings");
        vision.insert(
            "image_pos_embed".to_owned(),
            serde_json::json!({"type": "learned_abs_2d", "max_pos_embeddings": 50}),
        );
        vision.insert(
            "visual_temporal_embedding".to_owned(),
            serde_json::json!({"type": "COSINE", "max_temporal_embeddings": 100}),
        );
        config.as_object_mut().unwrap().shift_remove("tie_word_embeddings");
    });
    let comparisons = check(copy.path(), "cpu").unwrap();
    assert!(comparisons.iter().any(|comparison| comparison.tensor == "logits"));
    assert!(comparisons.iter().all(Comparison::passes), "{comparisons:#?}");
    let (generated, _) = generate(copy.path(), "<OD>");
    assert_eq!(generated.regions.len(), 2);
}

/// Edits a JSON file in place.
fn edit(path: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_broken_snapshot_is_refused_with_what_is_wrong() {
    let huge = serde_json::json!(1_i64 << 60);
    for (file, pointer, value, fault) in [
        ("config.json", "/text_config/d_model", huge.clone(), "hidden_size"),
        ("config.json", "/text_config/encoder_layers", huge.clone(), "encoder: num_hidden_layers"),
        (
            "config.json",
            "/text_config/decoder_attention_heads",
            5.into(),
            "not a multiple of num_attention_heads 5",
        ),
        ("config.json", "/text_config/max_position_embeddings", 5.into(), "give 5 tokens"),
        ("config.json", "/text_config/vocab_size", 1000.into(), "has the id"),
        ("config.json", "/text_config/activation_function", "relu".into(), "unknown variant"),
        ("config.json", "/vision_config/embed_dim", serde_json::json!([]), "0 stages"),
        ("config.json", "/vision_config/depths", serde_json::json!([1, 1, 1]), "depths has 3 entries"),
        ("config.json", "/vision_config/depths/2", huge.clone(), "stage 2: depths"),
        ("config.json", "/vision_config/num_heads/3", 5.into(), "not a multiple of num_heads 5"),
        ("config.json", "/vision_config/patch_stride/0", 0.into(), "patch_stride 0"),
        ("config.json", "/vision_config/window_size", 0.into(), "window_size 0"),
        ("config.json", "/vision_config/mlp_ratio", serde_json::json!(1e300), "mlp_ratio"),
        ("config.json", "/vision_config/projection_dim", 13.into(), "not d_model 12"),
        ("config.json", "/vision_config/max_position_embeddings", 1.into(), "each side must be from 1 to 1"),
        ("config.json", "/vision_config/embed_dim/1", 10.into(), "do not fit the configuration"),
        ("preprocessor_config.json", "/do_center_crop", true.into(), "do_center_crop"),
        (
            "preprocessor_config.json",
            "/size",
            serde_json::json!({"shortest_edge": 64}),
            "needs a size of height and width",
        ),
        ("generation_config.json", "/num_beams", 0.into(), "num_beams 0"),
        ("generation_config.json", "/forced_eos_token_id", 5000.into(), "token id 5000"),
        ("tokenizer.json", "/model/type", "none".into(), "tokenizer.json"),
    ] {
        let copy = copy();
        edit(&copy.path().join("snapshot").join(file), |json| *json.pointer_mut(pointer).unwrap() = value);
        let message = load(copy.path(), "", "fp32").err().unwrap().to_string();
        assert!(message.contains(fault), "{file} {pointer}: {message}");
    }
}

#[test]
fn an_unknown_mode_is_refused() {
    let given = serde_json::json!({ "mode": "guess" });
    let florence2 = Architecture::by_name("florence2").unwrap();
    let (_, faults) = florence2.read_options(given.as_object().unwrap());
    assert!(matches!(faults[0].problem, OptionProblem::NotOneOf { .. }), "{faults:?}");
}
