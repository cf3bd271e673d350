//! `concord bench`: its workloads, its numbers and its errors.

use serde_json::Value;

use crate::harness::{Run, concord};

/// Returns the JSON of a run that measured everything.
fn measured(arguments: &[&str]) -> Value {
    let run = concord(&[&["bench", "--iterations", "2", "--warmup", "1", "--json"], arguments].concat());
    assert_eq!(run.status, 0, "{run:?}");
    run.json_lines().remove(0)
}

fn rows(json: &Value) -> Vec<(&str, &str, u64)> {
    let results = json["results"].as_array().unwrap();
    let row = |row| -> (&str, &str, u64) {
        let row: &Value = row;
        (row["model"].as_str().unwrap(), row["work"].as_str().unwrap(), row["batch"].as_u64().unwrap())
    };
    results.iter().map(row).collect()
}

/// Checks that every number that is measured on a CPU is there, and is plausible.
fn check_numbers(json: &Value) {
    for model in json["models"].as_array().unwrap() {
        assert!(model["load_s"].as_f64().unwrap() > 0.0, "{model}");
        assert!(model["host_peak_bytes"].as_u64().unwrap() > 10_000_000, "{model}");
        assert!(model["parameters"].as_u64().unwrap() > 10_000, "{model}");
    }
    for row in json["results"].as_array().unwrap() {
        assert_eq!(row["error"], Value::Null, "{row}");
        assert_eq!(row["iterations"], 2, "{row}");
        for statistic in ["p50", "p99", "mean", "min"] {
            assert!(row["latency_ms"][statistic].as_f64().unwrap() > 0.0, "{row}");
        }
        let each = row["latency_ms"]["mean"].as_f64().unwrap() / row["batch"].as_f64().unwrap();
        assert!((row["images_per_s"].as_f64().unwrap() * each / 1e3 - 1.0).abs() < 1e-6, "{row}");
    }
}

#[test]
fn a_preset_is_measured_at_every_batch_size() {
    let json = measured(&["--random", "dinov3-tiny", "--batch", "1,2", "--device", "cpu"]);
    let (pooled, vote) = ("pixels → pooled output", "classify yes/no");
    let expected =
        [1, 2].map(|batch| [("dinov3-tiny", pooled, batch), ("dinov3-tiny", vote, batch)]).concat();
    assert_eq!(rows(&json), expected);
    check_numbers(&json);
    let model = &json["models"][0];
    assert_eq!(
        (&model["source"], &model["dtype"], &model["device"]),
        (&"random".into(), &"bf16".into(), &"cpu".into())
    );
    assert_eq!((&json["program"], &model["graphs"]), (&"concord".into(), &false.into()));
}

#[test]
fn every_architecture_has_a_preset_that_votes_and_generates_all_tokens() {
    let presets = ["siglip2-tiny", "florence2-tiny", "molmo2-tiny"];
    let mut arguments = vec!["--tokens", "4", "--dtype", "fp32,bf16", "--device", "cpu"];
    arguments.extend(presets.iter().flat_map(|preset| ["--random", preset]));
    let json = measured(&arguments);
    check_numbers(&json);
    let rows = rows(&json);
    for preset in presets {
        let votes = rows.iter().filter(|row| row.0 == preset && row.1 == "classify yes/no");
        assert_eq!(votes.count(), 2, "{preset}: {rows:?}");
    }
    let generated = json["results"].as_array().unwrap().iter().filter(|row| row["new_tokens"] != Value::Null);
    let generated: Vec<(&Value, &Value)> = generated.map(|row| (&row["work"], &row["new_tokens"])).collect();
    assert_eq!(generated.len(), 6, "{generated:?}");
    assert!(generated.iter().all(|(_, tokens)| **tokens == 4), "{generated:?}");
    // The prompt is as long as the one that its peers are measured with.
    let prefill = json["results"].as_array().unwrap().iter().find(|row| row["work"] == "decoder: prefill");
    assert_eq!(prefill.unwrap()["prompt_tokens"], 800);
}

#[test]
fn models_of_the_ensemble_and_single_snapshots_are_measured() {
    let json = measured(&["--ensemble", "ensemble.toml", "--tokens", "3", "--device", "cpu"]);
    check_numbers(&json);
    let mut models: Vec<&str> = rows(&json).iter().map(|row| row.0).collect();
    models.dedup();
    assert_eq!(models, ["dinov3", "florence2", "molmo2", "siglip2"]);
    let votes = rows(&json).into_iter().filter(|row| row.1 == "classify yes/no").count();
    assert_eq!(votes, 4, "{json}");

    let json = measured(&["siglip2", "--only", "pooled", "--device", "cpu"]);
    assert_eq!(rows(&json), [("siglip2", "pixels → pooled output", 1)]);
    let folder = "models/nano/siglip2";
    let json = measured(&["--snapshot", folder, "--architecture", "siglip2", "--only", "classify"]);
    assert_eq!(rows(&json), [(folder, "classify yes/no", 1)]);
}

#[test]
fn two_models_at_once_are_compared_with_each_alone() {
    let pair = ["--together", "random:dinov3-tiny", "siglip2", "--batch", "1,2", "--device", "cpu"];
    let json = measured(&pair);
    let together = json["together"].as_array().unwrap();
    assert_eq!(together.len(), 2, "one for each batch size: {json}");
    for (row, batch) in together.iter().zip([1, 2]) {
        assert_eq!((&row["batch"], &row["graphs"]), (&batch.into(), &false.into()), "{row}");
        let models = row["models"].as_array().unwrap();
        let names: Vec<&Value> = models.iter().map(|model| &model["model"]).collect();
        assert_eq!(names, ["dinov3-tiny", "siglip2"]);
        assert!(models.iter().all(|model| model["work"] == "classify yes/no" && model["iterations"] == 2));
        let alone: f64 = models.iter().map(|model| model["alone_s"].as_f64().unwrap()).sum();
        let ratio = row["together_s"].as_f64().unwrap() / alone;
        assert!(ratio > 0.0 && (row["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-6, "{row}");
    }
    let table =
        concord(&[&["bench", "--iterations", "1"], &pair[..2], &["random:siglip2-tiny"]].concat()[..]);
    assert!(table.status == 0 && table.stdout.contains("ratio"), "{table:?}");
    // If one of the two fails, nobody waits for the other.
    let only = [&["bench", "--only", "decoder"], pair.as_slice()].concat();
    let run = concord(&only);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("no workload is called \"decoder\": must be one of pixels"), "{run:?}");
}

#[test]
fn tables_are_printed_beside_a_file_of_json() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bench.json");
    let json = format!("--json={}", file.display());
    let run = concord(&["bench", "--random", "siglip2-tiny", "--seconds", "0", "--device", "cpu", &json]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(run.stdout.contains("pooled output") && run.stdout.contains("p50 ms"), "{run:?}");
    assert!(run.stderr.contains("siglip2-tiny bf16: batch 1: classify yes/no"), "{run:?}");
    let json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(rows(&json).len(), 2);
}

#[test]
fn a_wrong_argument_is_refused_with_the_known_values() {
    let refused = |arguments: &[&str]| -> Run {
        let run = concord(&[&["bench"], arguments].concat());
        assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{run:?}");
        run
    };
    for (arguments, expected) in [
        (
            &["--random", "dinov3-huge"] as &[&str],
            "must be one of dinov3-vits16, dinov3-vitb16, dinov3-vitl16",
        ),
        (&["dinov4"], "must be one of dinov3, siglip2"),
        (&["--together", "dinov3", "dinov4"], "must be one of dinov3, siglip2"),
        (&["--together", "dinov3", "random:dinov3-huge"], "must be one of dinov3-vits16"),
        (&["--together", "dinov3"], "2 values required"),
        (&["--dtype", "int3"], "must be one of fp32, bf16, fp16, fp8"),
        (&["--snapshot", "models/nano/siglip2", "--architecture", "vit"], "must be one of dinov3, siglip2"),
        (&["--snapshot", "models/nano/siglip2"], "--architecture"),
        (&["--batch", "0"], "must be at least 1"),
    ] {
        let run = refused(arguments);
        assert!(run.stderr.contains(expected), "{arguments:?}: {run:?}");
    }
    let run = concord(&["bench", "--snapshot", "models/nano/siglip2", "--architecture", "dinov3"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("architecture dinov3 loads dinov3_vit"), "{run:?}");
}
