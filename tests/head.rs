//! `concord head train` on the images of `assets/`, and a running server that loads the heads.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

use crate::fit::table;
use crate::harness::server::Server;
use crate::harness::{Run, concord, replace, root};

const ENSEMBLE: &str = r#"# mine
[models.dinov3]
architecture = "dinov3"
snapshot = "dinov3"
device = "cpu"
heads = { roadwork = "head.roadwork.safetensors" } # the shipped one

[models.siglip2]
architecture = "siglip2"
snapshot = "NANO/siglip2"

[tasks.roadwork]
question = "Is there active road construction in this image?"
labels = ["no road work", "road work"]
calibration = { dinov3 = 0.61 }

[[tasks.roadwork.stages]]
models = ["dinov3"]
"#;

/// An ensemble with a snapshot of its own, labeled images, and a folder for features.
struct Workplace {
    folder: TempDir,
    ensemble: PathBuf,
    /// The first text of the configuration.
    text: String,
    data: PathBuf,
}

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = folder.path().join("dinov3");
        for made in [&snapshot, &folder.path().join("images")] {
            fs::create_dir(made).unwrap();
        }
        for entry in fs::read_dir(root().join("models/nano/dinov3")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, snapshot.join(path.file_name().unwrap())).unwrap();
        }
        let data = table(&folder.path().join("images"), 15);
        let ensemble = folder.path().join("ensemble.toml");
        let text = replace(ENSEMBLE, "NANO", root().join("models/nano").to_str().unwrap());
        fs::write(&ensemble, &text).unwrap();
        Self { folder, ensemble, text, data }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces the configuration.
    fn edit(&self, from: &str, to: &str) {
        let text = replace(&fs::read_to_string(&self.ensemble).unwrap(), from, to);
        fs::write(&self.ensemble, text).unwrap();
    }

    fn train(&self, more: &[&str]) -> Run {
        self.train_on(&self.data, &[&["--model", "dinov3"], more].concat())
    }

    fn train_on(&self, data: &Path, more: &[&str]) -> Run {
        let features = self.path("features");
        let [ensemble, data, features] = [&self.ensemble, data, &features].map(|path| path.to_str().unwrap());
        let arguments = ["head", "train", "--ensemble", ensemble, "--data", data, "--features", features];
        concord(&[&arguments[..], more].concat())
    }

    /// Returns the tensors of a head as bytes, by name.
    fn tensors(&self, head: &str) -> Vec<(String, Vec<u8>)> {
        let bytes = fs::read(self.path("dinov3").join(head)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> =
            file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
        tensors.sort();
        tensors
    }

    /// Returns an entry of a head's metadata.
    fn note(&self, head: &str, key: &str) -> String {
        let bytes = fs::read(self.path("dinov3").join(head)).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        metadata.metadata().as_ref().unwrap().get(key).unwrap_or_else(|| panic!("no {key}")).clone()
    }

    fn feature_bytes(&self) -> u64 {
        let files = fs::read_dir(self.path("features")).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
    }
}

fn classify(server: &Server, name: &str) -> Value {
    let answer =
        server.client.classify_fresh("roadwork", &fs::read(root().join("assets").join(name)).unwrap());
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

#[test]
fn a_head_is_trained_and_a_running_server_takes_it_up() {
    let workplace = Workplace::new();
    let server = Server::start(&workplace.ensemble);
    let before = classify(&server, "road-work-clear.jpg");
    let run = workplace.train(&["--apply"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(
        run.stdout.contains("30 images in 30 groups: 24 to train on, 6 to validate on"),
        "{}",
        run.stdout
    );
    let text = fs::read_to_string(&workplace.ensemble).unwrap();
    assert!(text.starts_with("# mine\n"), "{text}");
    let line = r#"heads = { roadwork = "head.roadwork.v1.safetensors" } # the shipped one"#;
    assert!(text.contains(line) && run.stdout.contains(&format!("+{line}")), "{text} {}", run.stdout);
    assert!(text.contains("calibration = { dinov3 = 1.0 }"), "no errors, and so no surer: {text}");
    assert_eq!(fs::read_to_string(workplace.path("ensemble.toml.bak")).unwrap(), workplace.text);

    server.client.wait_until("the head was taken up", |client| {
        client.metric("concord_config_reloads_total", &["outcome=\"applied\""]) >= 1.0
    });
    let after = classify(&server, "road-work-clear.jpg");
    assert_ne!(after["votes"][0]["probability"], before["votes"][0]["probability"]);
    for (name, label) in [("road-work-clear.jpg", "road work"), ("camera.png", "no road work")] {
        let verdict = classify(&server, name);
        assert_eq!(verdict["label"], label, "{name}: {verdict}");
        assert!(verdict["votes"][0].get("uncertainty").is_none(), "{verdict}");
    }
}

#[test]
fn a_head_of_another_snapshot_is_warned_of() {
    let workplace = Workplace::new();
    assert_eq!(workplace.train(&["--apply"]).status, 0);
    let warned = || {
        let run = concord(&["validate", "--ensemble", workplace.ensemble.to_str().unwrap()]);
        assert_eq!(run.status, 0, "{run:?}");
        run.stderr.contains("trained on another snapshot than its model has: train it again")
    };
    assert!(!warned(), "it is its own");
    // The backbone's features may differ now.
    let settings = workplace.path("dinov3/preprocessor_config.json");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text}\n")).unwrap();
    assert!(warned());
}

#[test]
fn heads_are_numbered_and_follow_from_their_seeds() {
    let workplace = Workplace::new();
    let seeds = ["3", "3", "4"];
    let mut features = Vec::new();
    for seed in seeds {
        let run = workplace.train(&["--seed", seed]);
        assert_eq!(run.status, 0, "{run:?}");
        features.push(workplace.feature_bytes());
    }
    let names = [1, 2, 3].map(|version| format!("head.roadwork.v{version}.safetensors"));
    let [first, again, other] = names.each_ref().map(|name| workplace.tensors(name));
    assert_eq!(first, again, "the same seed gives the same head");
    assert_ne!(first, other);
    // 30 images, the CLS token and the mean of 128 numbers each, a digest and a checksum.
    assert_eq!(features, [30 * (2 * 128 * 4 + 40); 3], "the backbone ran once");

    let note = |key| workplace.note(&names[0], key);
    assert_eq!((note("kind"), note("dropout"), note("seed")), ("linear".into(), "0".into(), "3".into()));
    assert_eq!(note("mc_dropout_passes"), "0");
    assert_eq!(note("labels"), r#"["no road work","road work"]"#);
    assert_eq!((note("snapshot").len(), note("data").len()), (64, 64));
    assert_eq!(note("data"), workplace.note(&names[2], "data"), "of the same images");
    let images: Value = serde_json::from_str(&note("images")).unwrap();
    let expected =
        serde_json::json!({"training": 24, "validation": 6, "groups": 30, "of_each_label": [15, 15]});
    assert_eq!(images, expected);
    let validation: Value = serde_json::from_str(&note("validation")).unwrap();
    for figure in ["accuracy", "mcc", "nll", "ece"] {
        assert!(validation[figure]["high"].as_f64() >= validation[figure]["low"].as_f64(), "{validation}");
    }
    assert_eq!(
        fs::read_to_string(&workplace.ensemble).unwrap(),
        workplace.text,
        "nothing is written without --apply"
    );
    // The number of a deleted version is not used again.
    fs::remove_file(workplace.path("dinov3").join(&names[1])).unwrap();
    assert!(workplace.train(&["--kind", "linear-cls"]).stdout.contains("head.roadwork.v4.safetensors"));
    assert_eq!(workplace.note("head.roadwork.v4.safetensors", "kind"), "linear-cls");
}

#[test]
fn an_mlp_head_says_how_uncertain_it_is() {
    let workplace = Workplace::new();
    let run =
        workplace.train(&["--kind", "mlp", "--dropout", "0.4", "--class-weight", "balanced", "--apply"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert_eq!(workplace.note("head.roadwork.v1.safetensors", "dropout"), "0.4");
    workplace.edit("device = \"cpu\"", "device = \"cpu\"\nmc_dropout_passes = 20");
    let server = Server::start(&workplace.ensemble);
    for name in ["road-work-far.jpg", "chelsea.png"] {
        let [first, again] = [classify(&server, name), classify(&server, name)];
        let uncertainty = first["votes"][0]["uncertainty"].as_f64().unwrap();
        assert!((0.0..=2.0_f64.ln()).contains(&uncertainty), "{first}");
        for field in ["uncertainty", "probability"] {
            assert_eq!(first["votes"][0][field], again["votes"][0][field], "{name}: the same each time");
        }
    }
    let kept = server.client.classify("roadwork", &fs::read(root().join("assets/chelsea.png")).unwrap());
    assert_eq!(kept.body["cache"], "verdict");
    assert!(kept.body["votes"][0]["uncertainty"].is_number(), "{kept:?}");
}

#[test]
fn passes_with_dropout_need_a_head_that_was_trained_with_it() {
    let workplace = Workplace::new();
    let run = workplace.train(&["--kind", "mlp", "--dropout", "0", "--epochs", "2"]);
    assert_eq!(run.status, 0, "{run:?}");
    workplace.edit("device = \"cpu\"", "device = \"cpu\"\nmc_dropout_passes = 20");
    let run = workplace.train(&["--apply"]);
    assert!(
        run.status == 2 && run.stderr.contains("asks its heads with dropout (mc_dropout_passes = 20)"),
        "{run:?}"
    );
    for head in ["head.roadwork.safetensors", "head.roadwork.v1.safetensors"] {
        let run = concord(&["validate", "--ensemble", workplace.ensemble.to_str().unwrap()]);
        let expected =
            format!("mc_dropout_passes = 20 needs a head that was trained with dropout, and {head} was not");
        assert!(run.status == 1 && run.stderr.contains(&expected), "{run:?}");
        if head == "head.roadwork.safetensors" {
            workplace.edit(head, "head.roadwork.v1.safetensors");
        }
    }
    workplace.edit("mc_dropout_passes = 20", "mc_dropout_passes = 257");
    workplace.edit("architecture = \"siglip2\"", "architecture = \"siglip2\"\nmc_dropout_passes = 1");
    let run = concord(&["validate", "--no-load", "--ensemble", workplace.ensemble.to_str().unwrap()]);
    for expected in [
        "models.dinov3.mc_dropout_passes: 257 is out of range: must be from 0 to 256",
        "models.siglip2.mc_dropout_passes: not an option of architecture siglip2: only dinov3 takes it",
    ] {
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
}

#[test]
fn unusable_arguments_and_data_are_errors() {
    let workplace = Workplace::new();
    let csv = |name: &str, rows: &[(&str, &str, &str)]| {
        let path = workplace.path("images").join(name);
        let rows: String =
            rows.iter().map(|(path, label, group)| format!("{path},{label},{group}\n")).collect();
        fs::write(&path, format!("path,label,group\n{rows}")).unwrap();
        path
    };
    let (road, none) = ("0-road-work-clear.jpg", "0-camera.png");
    let one_class = csv("one.csv", &[(road, "road work", "a"), ("1-road-work-clear.jpg", "road work", "b")]);
    let few = csv("few.csv", &[(road, "road work", "a"), (none, "no road work", "b")]);
    let stranger = csv("stranger.csv", &[(road, "stop", "a"), (none, "no road work", "b")]);
    let twice = csv(
        "twice.csv",
        &[
            (road, "road work", "a"),
            (none, "no road work", "b"),
            (road, "no road work", "c"),
            (road, "road work", "d"),
        ],
    );
    let data = &workplace.data;
    let itself = data.to_str().unwrap();
    for (data, more, expected) in [
        (
            &one_class,
            &["--model", "dinov3"][..],
            "there are no images of \"no road work\": a head needs images of every",
        ),
        (&few, &["--model", "dinov3"], "too few groups of images (2 groups of 2 images)"),
        (&stranger, &["--model", "dinov3"], "1 images have 1 unknown labels: stop"),
        (&twice, &["--model", "dinov3"], "are the same image with two labels"),
        (data, &["--model", "siglip2"], "siglip2 has no features that a head could be trained on"),
        (data, &["--model", "dino"], "no model \"dino\" runs here: there is dinov3, siglip2"),
        (data, &["--model", "dinov3", "--task", "weather"], "no task \"weather\" is configured"),
        (data, &["--model", "dinov3", "--device", "tpu"], "--device \"tpu\": must be auto, cpu"),
        (data, &["--model", "dinov3", "--dropout", "0.1"], "--dropout is for heads with hidden layers"),
        (data, &["--model", "dinov3", "--dropout", "1"], "must be from 0 to 0.9"),
        (data, &["--model", "dinov3", "--learning-rate", "0"], "must be greater than 0"),
        (data, &["--model", "dinov3", "--learning-rate", "1e30"], "choose a lower learning rate"),
        (data, &["--model", "dinov3", "--holdout", itself], "30 of the images are also in"),
    ] {
        let run = workplace.train_on(data, more);
        assert_eq!(run.status, 2, "{more:?} {run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    assert!(!workplace.path("dinov3/head.roadwork.v1.safetensors").exists(), "nothing was written");
    // A file that is not an image is left out, with a warning.
    fs::write(workplace.path("images").join(none), "no image").unwrap();
    let run = workplace.train(&[]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("1 of 30 images are left out"), "{}", run.stderr);
}

#[test]
fn folders_that_cannot_be_written_to_are_reported_before_anything_is_computed() {
    use std::os::unix::fs::PermissionsExt as _;

    let workplace = Workplace::new();
    fs::write(workplace.path("features"), "a file").unwrap();
    let run = workplace.train(&[]);
    assert!(run.status == 2 && run.stderr.contains("features cannot be stored in"), "{run:?}");
    fs::remove_file(workplace.path("features")).unwrap();

    let snapshot = workplace.path("dinov3");
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(snapshot.join("probe"), "").is_ok() {
        // Root can write anywhere but there, and that folder has no snapshot.
        workplace.edit("snapshot = \"dinov3\"", "snapshot = \"/proc/self\"");
    }
    let run = workplace.train(&[]);
    fs::set_permissions(&snapshot, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(run.status == 2 && run.stderr.contains("no head can be written beside the snapshot"), "{run:?}");
    assert!(!workplace.path("features").exists());
}
