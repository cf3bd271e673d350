//! Tests Molmo2's labels and texts, in batches and alone, and its configurations.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use concord_models::parity::{Comparison, check};
use concord_models::{
    GenerateRequest, Generated, ImageLimits, Model, ModelError, ModelOptions, Pixels, RgbImage, TaskId,
    TaskSpec, decode, load_model,
};
use serde_json::{Value, json};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name)
}

fn load(snapshot: &Path) -> Result<Box<dyn Model>, ModelError> {
    load_as("fp32", snapshot)
}

fn load_as(dtype: &str, snapshot: &Path) -> Result<Box<dyn Model>, ModelError> {
    let options = ModelOptions {
        architecture: "molmo2".to_owned(),
        snapshot: snapshot.to_owned(),
        device: "cpu".to_owned(),
        dtype: dtype.to_owned(),
        ..ModelOptions::default()
    };
    load_model(&options, Path::new(""))
}

/// Returns a copy of a fixture that a test may change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for part in ["", "images", "snapshot"] {
        fs::create_dir_all(copy.path().join(part)).unwrap();
        for entry in fs::read_dir(folder(name).join(part)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, copy.path().join(part).join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    copy
}

/// Changes one of a snapshot's JSON files; `Null` removes an entry.
fn change(snapshot: &Path, file: &str, pointer: &str, value: Value) {
    let path = snapshot.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Value::Null => assert!(parent.remove(key).is_some(), "{file} has no {pointer}"),
        value => drop(parent.insert(key.to_owned(), value)),
    }
    fs::write(path, json.to_string()).unwrap();
}

fn image(name: &str) -> RgbImage {
    decode(&fs::read(folder("molmo2").join(format!("images/{name}.png"))).unwrap(), ImageLimits::default())
        .unwrap()
}

fn task(answers: &[&str]) -> TaskSpec {
    TaskSpec {
        task: "roadwork".to_owned(),
        question: "Is there work on the road?".to_owned(),
        labels: answers.iter().map(|answer| ((*answer).to_owned(), Vec::new())).collect(),
        answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
        head: None,
    }
}

fn assert_near(ours: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    for (a, b) in ours.iter().zip(expected) {
        assert!((a - b).abs() < tolerance, "{what}: {ours:?}, expected {expected:?}");
    }
}

/// The expected values were computed with transformers 5.23, without a cache: one forward pass over the
/// prompt, the answer and (for longer answers) the end token for each label.
#[test]
fn labels_are_as_probable_as_their_answers() {
    let (tokens, texts) = (["a", "t", "i"], ["no", "two dogs", "yes"]);
    for (name, answers, image_name, expected) in [
        ("molmo2", tokens, "landscape", [-4.21804, -4.68893, -5.92439]),
        ("molmo2", tokens, "portrait", [-4.23283, -4.72115, -5.92377]),
        ("molmo2", texts, "landscape", [-6.20359, -6.25291, -5.5367]),
        ("molmo2", texts, "portrait", [-6.15738, -6.2347, -5.54678]),
        ("molmo2_o", tokens, "landscape", [-3.7108, -5.17415, -5.84322]),
        ("molmo2_o", texts, "portrait", [-7.15127, -6.16723, -6.51884]),
    ] {
        for (dtype, tolerance) in [("fp32", 1e-4), ("bf16", 0.1), ("fp16", 0.02)] {
            let mut model = load_as(dtype, &folder(name).join("snapshot")).unwrap();
            model.prepare(TaskId(1), &task(&answers)).unwrap();
            let pixels = model.info().preprocessor.apply(&image(image_name)).unwrap();
            let scores = model.classify(TaskId(1), &[&pixels]).unwrap();
            let what = format!("{name} {dtype} {answers:?} {image_name}");
            assert_near(&scores[0].logits, &expected, tolerance, &what);
        }
    }
}

#[test]
fn a_batch_equals_single_runs_whatever_its_layouts() {
    let mut turned = image("landscape");
    image::imageops::flip_horizontal_in_place(&mut turned);
    let images = [image("landscape"), image("portrait"), turned, image("portrait")];
    for name in ["molmo2", "molmo2_o"] {
        let mut model = load(&folder(name).join("snapshot")).unwrap();
        let pixels: Vec<Pixels> =
            images.iter().map(|image| model.info().preprocessor.apply(image).unwrap()).collect();
        for answers in [&["a", "t"], &["two dogs", "a photo"]] {
            model.prepare(TaskId(1), &task(answers)).unwrap();
            let together = model.classify(TaskId(1), &pixels.iter().collect::<Vec<_>>()).unwrap();
            let alone = pixels.iter().map(|image| model.classify(TaskId(1), &[image]).unwrap().remove(0));
            for (alone, in_batch) in alone.zip(&together) {
                assert_near(&in_batch.logits, &alone.logits, 1e-4, name);
            }
            assert_ne!(together[0].logits, together[2].logits, "{name}: two images of one layout differ");
        }
    }
}

#[test]
fn tasks_are_prepared_and_forgotten() {
    let mut model = load(&folder("molmo2").join("snapshot")).unwrap();
    let pixels = model.info().preprocessor.apply(&image("portrait")).unwrap();
    assert!(matches!(model.classify(TaskId(1), &[&pixels]), Err(ModelError::NotPrepared)));
    model.prepare(TaskId(1), &task(&["a", "t"])).unwrap();
    assert!(model.classify(TaskId(1), &[]).unwrap().is_empty());
    model.forget(TaskId(1));
    assert!(matches!(model.classify(TaskId(1), &[&pixels]), Err(ModelError::NotPrepared)));
    for (answers, message) in [(["", "a"], "is no answer"), (["<im_patch>", "a"], "must not contain")] {
        let error = model.prepare(TaskId(1), &task(&answers)).unwrap_err().to_string();
        assert!(error.contains("task roadwork") && error.contains(message), "{error}");
    }
}

fn request(max_new_tokens: usize) -> GenerateRequest {
    GenerateRequest { prompt: "how many cones are on the road?".to_owned(), max_new_tokens }
}

/// Returns the generated text and its pieces; stops after `stop_after` pieces.
fn write(model: &dyn Model, max_new_tokens: usize, stop_after: usize) -> (Generated, Vec<String>) {
    let pixels = model.info().preprocessor.apply(&image("landscape")).unwrap();
    let mut pieces = Vec::new();
    let mut on_text = |piece: &str| {
        pieces.push(piece.to_owned());
        if pieces.len() < stop_after { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let generator = model.generator().unwrap();
    let generated = generator.generate(&pixels, &request(max_new_tokens), &mut on_text).unwrap();
    (generated, pieces)
}

/// The text is the fixture's case `single`, whose third and fifth tokens are halves of characters.
#[test]
fn texts_come_in_whole_characters() {
    let model = load(&folder("molmo2").join("snapshot")).unwrap();
    let (generated, pieces) = write(&*model, 6, usize::MAX);
    assert_eq!(generated.text, " inc\u{fffd};\u{fffd}e");
    assert_eq!(pieces, [" in", "c", "\u{fffd};", "\u{fffd}e"]);
    assert_eq!((generated.prompt_tokens, generated.new_tokens, generated.finished), (73, 6, false));

    let (cut, pieces) = write(&*model, 5, usize::MAX);
    assert_eq!(cut.text, " inc\u{fffd};\u{fffd}");
    assert_eq!(pieces.concat(), cut.text, "what stays incomplete comes at the end");

    let (stopped, pieces) = write(&*model, 6, 2);
    assert_eq!((stopped.text.as_str(), stopped.new_tokens, stopped.finished), (" inc", 2, false));
    assert_eq!(pieces, [" in", "c"]);

    let (nothing, pieces) = write(&*model, 0, usize::MAX);
    assert_eq!((nothing.text.as_str(), nothing.new_tokens, pieces.len()), ("", 0, 0));
}

#[test]
fn a_text_ends_at_any_of_the_configured_tokens() {
    let copy = copy_of("molmo2");
    let snapshot = copy.path().join("snapshot");
    // The fourth token that the model generates.
    for ends in [json!(26), json!([1, 26])] {
        change(&snapshot, "generation_config.json", "/eos_token_id", ends);
        let (generated, pieces) = write(&*load(&snapshot).unwrap(), 6, usize::MAX);
        assert_eq!((generated.new_tokens, generated.finished), (3, true));
        assert_eq!(pieces, [" in", "c", "\u{fffd}"]);
    }
}

#[test]
fn prompts_that_cannot_be_asked_are_refused() {
    let copy = copy_of("molmo2");
    let snapshot = copy.path().join("snapshot");
    change(&snapshot, "config.json", "/text_config/max_position_embeddings", json!(75));
    let model = load(&snapshot).unwrap();
    let pixels = model.info().preprocessor.apply(&image("landscape")).unwrap();
    let ask = |prompt: &str| {
        let request = GenerateRequest { prompt: prompt.to_owned(), max_new_tokens: 6 };
        model.generator().unwrap().generate(&pixels, &request, &mut |_| ControlFlow::Continue(()))
    };
    for prompt in ["<|image|>", "see <im_patch>", "<|im_end|>\n<|im_start|>user"] {
        assert!(ask(prompt).unwrap_err().to_string().contains("must not contain the token"), "{prompt}");
    }
    assert!(ask(&"a long story ".repeat(10)).unwrap_err().to_string().contains("more than the model's 75"));
    assert_eq!(ask("how many cones are on the road?").unwrap().new_tokens, 2, "what fits");
}

fn assert_agrees(fixture: &Path) {
    let comparisons = check(fixture, "cpu").unwrap();
    assert!(comparisons.iter().all(Comparison::passes), "{comparisons:#?}");
}

/// Published files use older names than those that transformers writes.
#[test]
fn both_forms_of_the_configuration_are_read() {
    for name in ["molmo2", "molmo2_o"] {
        let copy = copy_of(name);
        let snapshot = copy.path().join("snapshot");
        fs::rename(snapshot.join("config_native.json"), snapshot.join("config.json")).unwrap();
        // The image processor's settings are also in processor_config.json.
        fs::remove_file(snapshot.join("preprocessor_config.json")).unwrap();
        assert_agrees(copy.path());
    }
}

/// The published templates use features that the fixtures' template does not: methods of Python, `continue`,
/// exceptions.
#[test]
fn templates_are_rendered_as_in_python() {
    const TEMPLATE: &str = "
        {%- set n = namespace(text='') -%}
        {%- for m in messages -%}
            {%- set role = m['role'].lower() -%}
            {%- if role == 'subtitle' -%}{%- continue -%}{%- endif -%}
            {%- if (loop.index % 2 == 1) != (role == 'user') -%}{{ raise_exception('turns') }}{%- endif -%}
            {%- for c in m['content'] if c['type'] == 'image' or 'image' in c -%}{{ '<|image|>' }}{%- endfor -%}
            {%- for c in m['content'] if c['style'] is not defined and c['type'] == 'text' -%}
                {%- set n.text = n.text ~ ('' if not n.text else ' ') ~ c['text'] -%}
            {%- endfor -%}
            {{ '<|im_start|>' ~ role ~ '\\n' ~ n.text.strip() ~ '<|im_end|>\\n' }}
        {%- endfor -%}
        {%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}";
    let copy = copy_of("molmo2");
    let snapshot = copy.path().join("snapshot");
    fs::remove_file(snapshot.join("chat_template.jinja")).unwrap();
    change(&snapshot, "tokenizer_config.json", "/chat_template", json!(TEMPLATE));
    assert_eq!(write(&*load(&snapshot).unwrap(), 6, usize::MAX).0.text, " inc\u{fffd};\u{fffd}e");

    change(&snapshot, "tokenizer_config.json", "/chat_template", json!("{{ raise_exception('no turns') }}"));
    let mut model = load(&snapshot).unwrap();
    let error = model.prepare(TaskId(1), &task(&["a", "t"])).unwrap_err().to_string();
    assert!(error.contains("no turns"), "{error}");
    change(&snapshot, "tokenizer_config.json", "/chat_template", json!("no image"));
    let error = load(&snapshot).unwrap().prepare(TaskId(1), &task(&["a", "t"])).unwrap_err().to_string();
    assert!(error.contains("0 times for 1 images"), "{error}");
}

#[test]
fn broken_configurations_are_refused() {
    let huge = json!(1_000_000_000_000_i64);
    for (file, pointer, value, message) in [
        ("config.json", "/text_config/hidden_size", huge.clone(), "text_config: hidden_size"),
        ("config.json", "/text_config/vocab_size", huge.clone(), "text_config: vocab_size"),
        ("config.json", "/text_config/num_hidden_layers", huge.clone(), "text_config: num_hidden_layers"),
        ("config.json", "/text_config/head_dim", json!(7), "head_dim 7 is not a multiple of 2"),
        ("config.json", "/text_config/num_key_value_heads", json!(3), "not a multiple of 3 key heads"),
        ("config.json", "/text_config/qk_norm_type", json!("other"), "unknown variant"),
        ("config.json", "/text_config/rope_theta", json!(0.0), "rope_theta 0 must be"),
        ("config.json", "/text_config/rope_theta", Value::Null, "rope_theta is missing"),
        ("config.json", "/text_config/rope_scaling", json!({"rope_type": "longrope"}), "\"longrope\" is not"),
        ("config.json", "/text_config/rope_scaling", json!({"type": "yarn", "factor": -1.0}), "yarn: factor"),
        ("config.json", "/adapter_config/vit_layers", json!([]), "vision_feature_layer must name"),
        ("config.json", "/adapter_config/vit_layers", json!([5]), "vision_feature_layer 5 is out of range"),
        ("config.json", "/adapter_config/hidden_size", json!(8), "hidden_size 8 is not that of"),
        ("config.json", "/adapter_config/text_hidden_size", json!(8), "text_hidden_size 8"),
        ("config.json", "/vit_config/image_num_pos", json!(24), "num_position_embeddings 24"),
        ("config.json", "/vit_config/image_patch_size", json!(0), "patch_size 0"),
        ("config.json", "/vit_config/image_default_input_size", json!([30, 30]), "a crop has 36 patches"),
        ("config.json", "/image_patch_id", json!(1), "but image_patch_id 1"),
        ("config.json", "/vit_config", Value::Null, "missing field `vision_config`"),
        ("preprocessor_config.json", "/size", json!({"height": 50, "width": 50}), "does not give crops"),
        ("preprocessor_config.json", "/max_crops", huge.clone(), "max_crops"),
        ("preprocessor_config.json", "/overlap_margins", json!([3, 2]), "leave nothing of a crop"),
        ("preprocessor_config.json", "/pooling_size", json!([0, 2]), "pooling_size 0"),
        ("preprocessor_config.json", "/resample", json!(3), "resample must be 2"),
    ] {
        let copy = copy_of("molmo2");
        let snapshot = copy.path().join("snapshot");
        change(&snapshot, file, pointer, value);
        let error = load(&snapshot).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(message), "{file} {pointer}: {error}");
    }
}

#[test]
fn missing_files_and_tensors_are_named() {
    for missing in ["tokenizer.json", "processor_config.json", "model-00002-of-00004.safetensors"] {
        let copy = copy_of("molmo2_o");
        let snapshot = copy.path().join("snapshot");
        fs::remove_file(snapshot.join(missing)).unwrap();
        let error = load(&snapshot).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(missing), "{missing}: {error}");
    }
    // The configured tower is deeper than the file: the missing layer's tensors are named, and nothing is
    // computed.
    let copy = copy_of("molmo2");
    let snapshot = copy.path().join("snapshot");
    change(&snapshot, "config.json", "/text_config/num_hidden_layers", json!(3));
    change(&snapshot, "config.json", "/text_config/additional_vocab_size", json!(17));
    let error = load(&snapshot).map(|_| ()).unwrap_err().to_string();
    for name in ["blocks.2.self_attn.att_proj.weight: missing", "wte.new_embedding: expected [17, 24]"] {
        assert!(error.contains(name), "{error}");
    }
}
