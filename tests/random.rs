//! The option `snapshot = "random:PRESET"`: models of published sizes with random weights, for benchmarks.

use std::path::PathBuf;

use crate::harness::concord;
use crate::harness::server::{Server, photograph};

const HEAD: &str = "heads = { roadwork = \"head.roadwork.safetensors\" }";

/// Returns an ensemble of all four architectures, in three stages none of which accepts.
fn ensemble(folder: &tempfile::TempDir) -> PathBuf {
    let model = |name: &str, more: &str| {
        format!(
            "[models.{name}]\narchitecture = \"{name}\"\nsnapshot = \"random:{name}-tiny\"\n\
             device = \"cpu\"\ndtype = \"bf16\"\n{more}\n"
        )
    };
    let models = [
        model("dinov3", &format!("replicas = 2\n{HEAD}")),
        model("siglip2", ""),
        model("florence2", ""),
        model("molmo2", ""),
    ];
    let task = "[tasks.roadwork]\nquestion = \"Is there active road construction in this image?\"\n\
        labels = [\"no road work\", \"road work\"]\n\
        fusion = { method = \"linear\", weights = { dinov3 = 1, siglip2 = 1, florence2 = 1, molmo2 = 1 } }\n";
    let stage = |models: &str| {
        format!("[[tasks.roadwork.stages]]\nmodels = [{models}]\naccept = {{ confidence = 1.0 }}\n")
    };
    let stages = ["\"dinov3\"", "\"siglip2\", \"florence2\"", "\"molmo2\""].map(stage);
    let path = folder.path().join("ensemble.toml");
    std::fs::write(&path, models.concat() + task + &stages.concat()).unwrap();
    path
}

#[test]
fn every_architecture_votes_with_random_weights_and_warns_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = ensemble(&folder);
    let cache = folder.path().join("cache");
    let votes = || {
        let server = Server::start_with(&file, &[("XDG_CACHE_HOME", cache.to_str().unwrap())]);
        let answers: Vec<_> =
            (0..3).map(|_| server.client.classify_fresh("roadwork", &photograph(0))).collect();
        let warned = || server.log().matches("the model's weights are random").count();
        server.client.wait_until("all models warn", |_| warned() >= 4);
        assert_eq!(warned(), 4, "one line a model: {}", server.log());
        let votes = |answer: &crate::harness::server::Answer| {
            assert_eq!(answer.status, 200, "{answer:?}");
            let votes = answer.body["votes"].as_array().unwrap();
            votes.iter().map(|vote| (vote["model"].clone(), vote["probability"].clone())).collect::<Vec<_>>()
        };
        let first = votes(&answers[0]);
        // All replicas return the same votes.
        assert!(answers.iter().all(|answer| votes(answer) == first), "{answers:?}");
        first
    };
    let first = votes();
    assert_eq!(first.len(), 4, "{first:?}");
    assert_eq!(votes(), first, "the weights are the same at every start");
    assert!(cache.join("concord/presets/dinov3-tiny/config.json").is_file());
}

#[test]
fn random_presets_are_benchmarked_and_validated() {
    let folder = tempfile::tempdir().unwrap();
    let file = ensemble(&folder);
    let text = std::fs::read_to_string(&file).unwrap();
    let file = file.to_str().unwrap();
    let run = concord(&["bench", "siglip2", "--ensemble", file, "--iterations", "1", "--json"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert_eq!(run.json_lines()[0]["models"][0]["source"], "random");
    for (from, to, expected) in [
        ("random:siglip2-tiny", "random:siglip2-huge", "\"siglip2-huge\" is not a preset"),
        ("random:siglip2-tiny", "random:dinov3-tiny", "must be with architecture = \"dinov3\""),
    ] {
        std::fs::write(file, text.replace(from, to)).unwrap();
        let run = concord(&["validate", "--ensemble", file]);
        assert_eq!(run.status, 1, "{run:?}");
        assert!(run.stderr.contains("models.siglip2.snapshot: ") && run.stderr.contains(expected), "{run:?}");
    }
}
