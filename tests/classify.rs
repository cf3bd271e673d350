//! `concord classify` on real photographs, composed ones, and files that are not images.

use std::fs;
use std::path::Path;

use crate::harness::{Run, concord, concord_with, edited_ensemble, replace, root};
use serde_json::Value;

fn classify(task: &str, files: &[&str]) -> Run {
    concord(&[&["classify", "--json", "--task", task], files].concat())
}

/// The images of `assets/` with their truth, as its SOURCES.md says.
const EXAMPLES: [(&str, &str); 9] = [
    ("camera.png", "no road work"),
    ("caution.jpg", "no road work"),
    ("chelsea.png", "no road work"),
    ("coffee.png", "no road work"),
    ("road-work-clear.jpg", "road work"),
    ("road-work-dusk.jpg", "road work"),
    ("road-work-far.jpg", "road work"),
    ("rocket.jpg", "no road work"),
    ("speed-limit-50.jpg", "no road work"),
];

#[test]
fn the_examples_get_correct_verdicts_at_both_stages() {
    let run = classify("roadwork", &["assets"]);
    assert_eq!(run.status, 0, "{run:?}");
    let verdicts = run.json_lines();
    let found: Vec<(&str, &str)> = verdicts
        .iter()
        .map(|verdict| {
            (
                verdict["file"].as_str().unwrap().trim_start_matches("assets/"),
                verdict["label"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(found, EXAMPLES);
    for stage in [1, 2] {
        assert!(verdicts.iter().any(|verdict| verdict["stage"] == stage), "none stops at stage {stage}");
    }
}

#[test]
fn a_verdict_contains_its_votes_weights_and_times() {
    let verdicts = classify("roadwork", &["assets/road-work-far.jpg", "assets/coffee.png"]).json_lines();
    let [escalated, accepted] = verdicts.as_slice() else { panic!("{verdicts:?}") };
    for verdict in &verdicts {
        let sum: f64 =
            verdict["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{verdict}");
        assert_eq!(verdict["task"], "roadwork");
        assert_eq!(verdict["reason"], "accepted");
        assert_eq!(verdict["stages"], 2);
        assert_eq!(verdict["complete"], true);
        assert_eq!(verdict["probability"], verdict["confidence"]);
        assert!(verdict["milliseconds"]["total"].as_f64() >= verdict["milliseconds"]["decode"].as_f64());
        assert_eq!(
            verdict["request_id"].as_str().unwrap().chars().nth(14),
            Some('7'),
            "no UUIDv7: {verdict}"
        );
    }
    assert_eq!(accepted["votes"].as_array().unwrap().len(), 1);
    assert_eq!(accepted["votes"][0]["weight"], 1.0);
    let votes = escalated["votes"].as_array().unwrap();
    let named: Vec<(&str, i64)> =
        votes.iter().map(|vote| (vote["model"].as_str().unwrap(), vote["stage"].as_i64().unwrap())).collect();
    assert_eq!(named, [("dinov3", 1), ("siglip2", 2)]);
    let fused: f64 = votes
        .iter()
        .map(|vote| vote["weight"].as_f64().unwrap() * vote["probabilities"]["road work"].as_f64().unwrap())
        .sum();
    assert!((fused - escalated["probability"].as_f64().unwrap()).abs() < 1e-9, "{escalated}");
}

/// Each model alone, at temperature 1, is compared with probabilities that transformers computed from the
/// same files.
#[test]
fn the_nano_models_agree_with_the_reference() {
    let expected = fs::read_to_string(root().join("tests/fixtures/nano/expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    for (task, model) in [
        ("roadwork", "dinov3"),
        ("roadwork", "siglip2"),
        ("traffic_sign", "dinov3"),
        ("traffic_sign", "siglip2"),
    ] {
        // Without accept rules and calibration, every model votes, and its vote is its own output.
        let (_folder, file) = edited_ensemble(|text| {
            let text =
                text.lines().filter(|line| !line.starts_with("accept") && !line.starts_with("calibration"));
            text.collect::<Vec<_>>().join("\n")
        });
        let images: Vec<&String> = expected[task][model].as_object().unwrap().keys().collect();
        assert_eq!(images.len(), 3);
        let files: Vec<String> = images.iter().map(|name| format!("assets/{name}")).collect();
        let mut arguments = vec!["classify", "--json", "--task", task, "--ensemble", file.to_str().unwrap()];
        arguments.extend(files.iter().map(String::as_str));
        for (image, verdict) in images.iter().zip(concord(&arguments).json_lines()) {
            let votes = verdict["votes"].as_array().unwrap();
            let vote = votes.iter().find(|vote| vote["model"] == model).unwrap();
            let ours = vote["probabilities"].as_object().unwrap().values().map(|p| p.as_f64().unwrap());
            let theirs =
                expected[task][model][*image].as_array().unwrap().iter().map(|p| p.as_f64().unwrap());
            let largest = ours.zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest < 1e-3, "{task} {model} {image}: differs by {largest}");
        }
    }
}

#[test]
fn a_file_that_is_not_an_image_is_reported_and_the_others_get_verdicts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let image = fs::read(root().join("assets/coffee.png")).unwrap();
    fs::write(path("empty.png"), "").unwrap();
    fs::write(path("text.jpg"), "this is not an image").unwrap();
    fs::write(path("half.png"), &image[..image.len() / 2]).unwrap();
    fs::write(path("good.png"), &image).unwrap();
    fs::create_dir(path("nothing")).unwrap();
    let files =
        ["empty.png", "good.png", "text.jpg", "missing.png", "half.png", "nothing", "no-*.png", "good.png"]
            .map(path);
    let run = classify("roadwork", &files.each_ref().map(String::as_str));
    assert_eq!(run.status, 1, "{run:?}");
    let outcomes = run.json_lines();
    let found: Vec<&str> = outcomes
        .iter()
        .map(|outcome| outcome["error"]["type"].as_str().or(outcome["label"].as_str()).unwrap())
        .collect();
    let expected = [
        "empty",
        "no road work",
        "not-an-image",
        "unreadable",
        "broken-image",
        "unreadable",
        "unreadable",
        "no road work",
    ];
    assert_eq!(found, expected, "{outcomes:#?}");
    for (outcome, file) in outcomes.iter().zip(&files) {
        assert_eq!(outcome["file"], *file);
    }
    let table = concord(&["classify", "--task", "roadwork", &files[2]]);
    assert!(table.status == 1 && table.stdout.contains("not an image"), "{table:?}");
}

#[test]
fn limits_are_those_of_the_configuration() {
    for (variable, value, expected) in [
        (
            "CONCORD__SERVER__MAX_PIXELS",
            "1000",
            "the image is 600 × 400 pixels, more than the limit of 1000 pixels (max_pixels)",
        ),
        ("CONCORD__SERVER__MAX_BODY_BYTES", "2000", "more than the limit of 2000 bytes (max_body_bytes)"),
    ] {
        let arguments = ["classify", "--json", "--task", "roadwork", "assets/coffee.png"];
        let run = concord_with(&arguments, &[(variable, value)]);
        assert_eq!(run.status, 1, "{run:?}");
        let error = &run.json_lines()[0]["error"];
        assert_eq!(error["type"], "too-large");
        assert!(error["detail"].as_str().unwrap().contains(expected), "{error}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_without_an_end_is_read_no_further_than_the_limit() {
    let run = concord(&["classify", "--json", "--task", "roadwork", "/dev/zero", "assets/coffee.png"]);
    assert_eq!(run.status, 1, "{run:?}");
    let outcomes = run.json_lines();
    assert_eq!(
        (&outcomes[0]["error"]["type"], &outcomes[1]["label"]),
        (&"too-large".into(), &"no road work".into())
    );
}

#[test]
fn folders_and_patterns_expand_to_their_images_in_order() {
    let names = |run: Run| -> Vec<String> {
        run.json_lines().iter().map(|outcome| outcome["file"].as_str().unwrap().to_owned()).collect()
    };
    let roads = ["assets/road-work-clear.jpg", "assets/road-work-dusk.jpg", "assets/road-work-far.jpg"];
    assert_eq!(names(classify("roadwork", &["assets/road-work-*.jpg"])), roads);
    assert_eq!(names(classify("roadwork", &["assets/rocket.jpg", "assets"])).len(), 1 + EXAMPLES.len());
}

#[test]
fn images_of_every_format_get_a_verdict() {
    let folder = root().join("models/tests/fixtures/images");
    let run = classify("traffic_sign", &[folder.to_str().unwrap()]);
    assert_eq!(run.status, 0, "{}", run.stdout);
    assert!(run.json_lines().len() >= 40);
    // The eight orientations are the same scene, stored differently. Upright, their pixels still differ from
    // each other, so that a file is compared only with Pillow's upright version of the same file.
    let label = |file: String| classify("traffic_sign", &[&file]).json_lines()[0]["label"].clone();
    for orientation in [3, 6, 8] {
        let stored = folder.join(format!("orientation_{orientation}.jpg"));
        let upright = folder.join(format!("orientation_{orientation}.jpg.rgb.png"));
        assert_eq!(
            label(stored.display().to_string()),
            label(upright.display().to_string()),
            "{orientation}"
        );
    }
}

/// Writes a SigLIP2 that overflows in half precision on red images, but not on the black one that it is tried
/// with at loading: its first filter is red minus blue, 64 pixels times 2000.
fn siglip2_that_fails_on_red() -> tempfile::TempDir {
    const PLUS_2000: [u8; 2] = 0x67d0_u16.to_le_bytes();
    const MINUS_2000: [u8; 2] = 0xe7d0_u16.to_le_bytes();
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&root().join("models/nano/siglip2"), folder.path());
    let file = folder.path().join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "vision_model.embeddings.patch_embedding.weight";
    let mut filters = tensors.tensor(name).unwrap().data().to_vec();
    filters[..128].copy_from_slice(&PLUS_2000.repeat(64));
    filters[128..256].fill(0);
    filters[256..384].copy_from_slice(&MINUS_2000.repeat(64));
    let shape = tensors.tensor(name).unwrap().shape().to_vec();
    let filters = safetensors::tensor::TensorView::new(safetensors::Dtype::F16, shape, &filters).unwrap();
    let changed = tensors.iter().map(|(key, view)| (key, if key == name { filters.clone() } else { view }));
    let changed = safetensors::serialize(changed, None).unwrap();
    fs::write(&file, changed).unwrap();
    folder
}

/// A failed vote fails the request if the model is required, and is only reported if the model is optional.
#[test]
fn a_failed_vote_is_never_counted() {
    let broken = siglip2_that_fails_on_red();
    let with_broken = |text: String| {
        let text = replace(
            &text,
            "\"../../models/nano/siglip2\"",
            &format!("{:?}", broken.path().to_str().unwrap()),
        );
        let text = replace(&text, "dtype = \"fp32\"", "dtype = \"fp16\"");
        replace(&text, "confidence = 0.999", "confidence = 1.0")
    };
    let arguments = |file: &Path| {
        ["classify", "--json", "--task", "roadwork", "assets/coffee.png", "--ensemble"]
            .map(str::to_owned)
            .into_iter()
            .chain([file.display().to_string()])
            .collect::<Vec<_>>()
    };
    let ask = |file: &Path| concord(&arguments(file).iter().map(String::as_str).collect::<Vec<_>>());

    let (_folder, file) = edited_ensemble(with_broken);
    let run = ask(&file);
    assert_eq!(run.status, 1, "{run:?}");
    let error = &run.json_lines()[0]["error"];
    assert_eq!(error["type"], "model-failed");
    assert!(error["detail"].as_str().unwrap().contains("required model siglip2 failed"), "{error}");

    let (_folder, file) = edited_ensemble(|text| {
        replace(
            &with_broken(text),
            "models = [\"siglip2\"]",
            "models = [\"siglip2\"]\noptional = [\"siglip2\"]",
        )
    });
    let run = ask(&file);
    assert_eq!(run.status, 0, "{run:?}");
    let verdict = &run.json_lines()[0];
    assert_eq!((&verdict["label"], &verdict["complete"]), (&"no road work".into(), &false.into()));
    assert_eq!(verdict["stage"], 2);
    assert_eq!(verdict["votes"][0]["weight"], 1.0);
    assert!(verdict["votes"][1]["error"].is_string(), "{verdict}");
    assert!(verdict["votes"][1]["weight"].is_null(), "{verdict}");
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_command_that_cannot_begin_says_what_to_do() {
    for (arguments, expected) in [
        (
            ["--task", "potholes", "assets"].as_slice(),
            "no task \"potholes\" is configured: must be one of roadwork, traffic_sign",
        ),
        (&["assets"], "several tasks are configured: name one with --task: roadwork, traffic_sign"),
        (
            &["--task", "roadwork", "--ensemble", "nowhere.toml", "assets"],
            "name the configuration with --ensemble FILE",
        ),
        (&["--task", "roadwork"], "required"),
    ] {
        let run = concord(&[&["classify"], arguments].concat());
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is not in {run:?}");
        assert_eq!(run.stdout, "");
    }
}
