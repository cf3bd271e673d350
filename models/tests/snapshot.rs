//! Tests snapshot folders that are sharded, in half precision, incomplete or wrong.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use concord_models::{Model, ModelError, ModelOptions, TaskId, TaskSpec, load_model};
use safetensors::tensor::{Dtype, TensorView};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity").join(name).join("snapshot")
}

/// Returns a copy of a fixture's snapshot that a test may change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn load(architecture: &str, folder: &Path) -> Result<Box<dyn Model>, ModelError> {
    load_model(
        &ModelOptions {
            architecture: architecture.to_owned(),
            snapshot: folder.to_owned(),
            device: "cpu".to_owned(),
            ..ModelOptions::default()
        },
        Path::new(""),
    )
}

type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(file: &Path) -> Tensors {
    let bytes = fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn write_tensors(file: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn parameters(folder: &Path) -> i64 {
    load("dinov3", folder).unwrap().info().parameters
}

#[test]
fn shards_and_bf16_load_like_one_file() {
    let copy = copy_of("dinov3_vit");
    let whole = copy.path().join("model.safetensors");
    let expected = parameters(copy.path());
    let (mut first, mut second) = (Tensors::new(), Tensors::new());
    for (index, (name, (_, shape, data))) in read_tensors(&whole).into_iter().enumerate() {
        // The upper half of a float32 is a bfloat16.
        let halves = data.chunks_exact(4).flat_map(|value| [value[2], value[3]]).collect();
        let shard = if index % 2 == 0 { &mut first } else { &mut second };
        shard.insert(name, (Dtype::BF16, shape, halves));
    }
    fs::remove_file(&whole).unwrap();
    let mut map = serde_json::Map::new();
    for (file, shard) in [("model-1.safetensors", &first), ("model-2.safetensors", &second)] {
        write_tensors(&copy.path().join(file), shard);
        map.extend(shard.keys().map(|name| (name.clone(), file.into())));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    fs::write(copy.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert_eq!(parameters(copy.path()), expected);
}

#[test]
fn all_faulty_tensors_are_named_with_both_shapes() {
    let copy = copy_of("dinov3_vit");
    let file = copy.path().join("model.safetensors");
    let mut tensors = read_tensors(&file);
    tensors.remove("norm.weight").unwrap();
    tensors.remove("layer.1.attention.q_proj.bias").unwrap();
    let (_, shape, data) = tensors.get_mut("layer.0.mlp.up_proj.weight").unwrap();
    let width = shape[1];
    *shape = vec![shape[0] - 1, width];
    data.truncate(data.len() - 4 * width);
    write_tensors(&file, &tensors);
    let message = load("dinov3", copy.path()).unwrap_err().to_string();
    for expected in [
        "3 of the tensors",
        "norm.weight: missing, expected [32]",
        "layer.1.attention.q_proj.bias: missing, expected [32]",
        "layer.0.mlp.up_proj.weight: expected [48, 32], found [47, 32]",
    ] {
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
    }
}

#[test]
fn what_is_wrong_with_a_folder_is_said() {
    type Spoil = fn(&Path);
    let cases: [(&str, &str, Spoil); 9] = [
        ("dinov3", "config.json: No such file", |folder| {
            fs::remove_file(folder.join("config.json")).unwrap();
        }),
        ("siglip2", "architecture siglip2 loads siglip or siglip2", |_| {}),
        ("dinov3", "line 1 column", |folder| fs::write(folder.join("config.json"), "{").unwrap()),
        ("dinov3", "not a multiple", |folder| {
            fs::write(
                folder.join("config.json"),
                r#"{"model_type": "dinov3_vit", "num_attention_heads": 7}"#,
            )
            .unwrap();
        }),
        ("dinov3", "unknown variant `relu`", |folder| {
            fs::write(folder.join("config.json"), r#"{"model_type": "dinov3_vit", "hidden_act": "relu"}"#)
                .unwrap();
        }),
        ("dinov3", "nor model.safetensors.index.json", |folder| {
            fs::remove_file(folder.join("model.safetensors")).unwrap();
        }),
        ("dinov3", "a broken download?", |folder| {
            let file = folder.join("model.safetensors");
            let bytes = fs::read(&file).unwrap();
            fs::write(&file, &bytes[..bytes.len() - 100]).unwrap();
        }),
        ("dinov3", "not a safetensors file", |folder| {
            fs::write(folder.join("model.safetensors"), "not tensors").unwrap();
        }),
        ("dinov3", "image_processor_type ViTImageProcessor is not supported", |folder| {
            let config = r#"{"image_processor_type": "ViTImageProcessor"}"#;
            fs::write(folder.join("preprocessor_config.json"), config).unwrap();
        }),
    ];
    for (architecture, expected, spoil) in cases {
        let copy = copy_of("dinov3_vit");
        spoil(copy.path());
        let message = load(architecture, copy.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
        assert!(message.contains(copy.path().to_str().unwrap()), "names no file: {message}");
    }
}

/// Tests sizes that could cause a huge allocation, or overflow, before a missing tensor is noticed.
#[test]
fn absurd_sizes_and_numbers_are_refused_by_name() {
    for (fixture_name, file, path, value, expected) in [
        (
            "dinov3_vit",
            "config.json",
            "/num_hidden_layers",
            1e9,
            "num_hidden_layers 1000000000 is out of range",
        ),
        (
            "dinov3_vit",
            "config.json",
            "/num_attention_heads",
            4e18,
            "num_attention_heads 4000000000000000000 is out of",
        ),
        (
            "dinov3_vit",
            "config.json",
            "/patch_size",
            -1.0,
            "patch_size -1 is out of range: must be from 1 to 1024",
        ),
        ("siglip2", "config.json", "/text_config/num_hidden_layers", 1e9, "text_config: num_hidden_layers"),
        ("siglip2", "config.json", "/text_config/vocab_size", 300.0, "the text tower ids under 300"),
        (
            "siglip2",
            "config.json",
            "/vision_config/num_hidden_layers",
            0.0,
            "vision_config: num_hidden_layers 0",
        ),
        (
            "siglip2",
            "preprocessor_config.json",
            "/rescale_factor",
            0.0,
            "rescale_factor 0 must be greater than 0",
        ),
        ("siglip2", "preprocessor_config.json", "/size/height", 0.0, "size 0 is not a side in pixels"),
    ] {
        let copy = copy_of(fixture_name);
        let file = copy.path().join(file);
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        *config.pointer_mut(path).unwrap() = (value as i64).into();
        fs::write(&file, config.to_string()).unwrap();
        let architecture = fixture_name.split('_').next().unwrap();
        let message = load(architecture, copy.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected:?} is not in: {message}");
    }
}

#[test]
fn half_precision_names_the_same_label_with_logits_close_by() {
    let image = concord_models::RgbImage::from_fn(64, 64, |x, y| [(x * 4) as u8, (y * 4) as u8, 90].into());
    let logits = |dtype: &str| {
        let options = ModelOptions {
            architecture: "dinov3".to_owned(),
            snapshot: fixture("dinov3_vit"),
            device: "cpu".to_owned(),
            dtype: dtype.to_owned(),
            ..ModelOptions::default()
        };
        let mut model = load_model(&options, Path::new("")).unwrap();
        model.prepare(DIGITS, &digits(10)).unwrap();
        let pixels = model.info().preprocessor.apply(&image).unwrap();
        model.classify(DIGITS, &[&pixels]).unwrap().remove(0).logits
    };
    let exact = logits("fp32");
    for dtype in ["bf16", "fp16"] {
        let half = logits(dtype);
        let largest = exact.iter().zip(&half).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest > 0.0 && largest < 0.1, "{dtype}: {largest}");
    }
}

#[test]
fn a_shard_outside_the_folder_is_refused() {
    let copy = copy_of("dinov3_vit");
    fs::remove_file(copy.path().join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"norm.weight": "../elsewhere.safetensors"}}"#;
    fs::write(copy.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(load("dinov3", copy.path()).unwrap_err().to_string().contains("not a plain file name"));
}

const DIGITS: TaskId = TaskId(1);

fn digits(count: usize) -> TaskSpec {
    let labels = (0..count).map(|digit| (digit.to_string(), vec![digit.to_string()])).collect();
    let head = Some("classifier_head.safetensors".into());
    TaskSpec { task: "digits".to_owned(), question: String::new(), labels, answers: Vec::new(), head }
}

#[test]
fn a_head_for_other_labels_is_refused() {
    let copy = copy_of("dinov3_vit");
    let mut model = load("dinov3", copy.path()).unwrap();
    model.prepare(DIGITS, &digits(10)).unwrap();
    let message = model.prepare(DIGITS, &digits(9)).unwrap_err().to_string();
    assert!(message.contains("gives 10 logits, but the task has 9 labels"), "{message}");
    let message = model.prepare(DIGITS, &TaskSpec { head: None, ..digits(10) }).unwrap_err().to_string();
    assert!(message.contains("no head"), "{message}");
    assert!(model.classify(TaskId(2), &[]).is_err());
}

#[test]
fn an_mlp_head_pools_the_patches_by_attention() {
    let copy = copy_of("dinov3_vit");
    let (hidden, inner) = (32_usize, 5_usize);
    let floats = |count: usize, seed: f32| -> Vec<u8> {
        (0..count).flat_map(|index| ((index as f32 * 0.37 + seed).sin() * 0.3).to_le_bytes()).collect()
    };
    let mut tensors = Tensors::new();
    let mut put = |name: &str, shape: Vec<usize>, seed: f32| {
        let data = floats(shape.iter().product(), seed);
        tensors.insert(name.to_owned(), (Dtype::F32, shape, data));
    };
    put("pool.query", vec![hidden], 0.1);
    for (index, (inputs, outputs)) in
        [(2 * hidden, inner), (inner, inner), (inner, inner), (inner, 3)].into_iter().enumerate()
    {
        put(&format!("mlp.{index}.weight"), vec![outputs, inputs], index as f32);
        put(&format!("mlp.{index}.bias"), vec![outputs], index as f32 + 0.5);
    }
    write_tensors(&copy.path().join("classifier_head.safetensors"), &tensors);
    let mut model = load("dinov3", copy.path()).unwrap();
    model.prepare(DIGITS, &digits(3)).unwrap();
    let image = concord_models::RgbImage::from_fn(64, 64, |x, y| [(x * 4) as u8, (y * 4) as u8, 90].into());
    let pixels = model.info().preprocessor.apply(&image).unwrap();
    let logits = model.classify(DIGITS, &[&pixels, &pixels]).unwrap();
    assert_eq!(logits[0].logits.len(), 3);
    assert!(logits[0].logits.iter().all(|logit| logit.is_finite()));
    // Some processors add up the last rows of a batch in another order.
    let pairs = logits[0].logits.iter().zip(&logits[1].logits);
    assert!(pairs.into_iter().all(|(one, other)| (one - other).abs() < 1e-5), "{logits:?}");
    tensors.remove("mlp.2.bias");
    write_tensors(&copy.path().join("classifier_head.safetensors"), &tensors);
    assert!(model.prepare(DIGITS, &digits(3)).unwrap_err().to_string().contains("mlp.2.bias: missing"));
}
