//! Learned weights, correctness estimators and least weights through the server: read with the file, changed
//! while it runs, and reported where they could not be used.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use concord::config::Ensemble;
use concord_policy::{CorrectnessEstimator, Dense, ImageFusion, Learned, Network};
use serde_json::{Value, json};

use crate::harness::fault_injection::FaultyServer;
use crate::harness::server::{Endpoint, Server, photograph};
use crate::harness::{edited_ensemble, replace, root};

/// The width of nano DINOv3's feature.
const FEATURE: usize = 128;
const FILE: &str = "roadwork.learned.safetensors";

/// Says the same of every image: the softmax of `outputs`, or the log-odds that are the only one.
fn constant(inputs: usize, outputs: &[f64]) -> Network {
    let bias: Vec<f32> = outputs.iter().map(|output| *output as f32).collect();
    let layer = Dense { weight: vec![0.0; inputs * bias.len()], bias };
    Network::new(vec![0.0; inputs], vec![1.0; inputs], vec![layer]).unwrap()
}

/// Writes a file with these weights, and these probabilities that answers of these models are right.
fn write(folder: &Path, weights: &[(&str, f64)], estimators: &[(&[&str], f64)]) {
    let names = |models: &[&str]| models.iter().map(|model| Arc::from(*model)).collect::<Vec<Arc<str>>>();
    let (models, shares): (Vec<&str>, Vec<f64>) = weights.iter().copied().unzip();
    let mut logits: Vec<f64> = shares.iter().map(|share| share.ln()).collect();
    // Each as sure as it is.
    logits.resize(ImageFusion::outputs(models.len()), 0.0);
    let mut learned =
        Learned::new(Arc::from("dinov3")).with_weights(names(&models), constant(FEATURE, &logits));
    for (models, right) in estimators {
        let correctness = constant(CorrectnessEstimator::NUMBERS + FEATURE, &[(right / (1.0 - right)).ln()]);
        learned = learned.with_estimator(&names(models), correctness);
    }
    // As `concord fit` does, so that nobody reads half of it.
    let (file, part) = (folder.join(FILE), folder.join("part"));
    fs::write(&part, learned.to_bytes(&BTreeMap::new()).unwrap()).unwrap();
    fs::rename(part, file).unwrap();
}

/// The road-work task, decided by what was learned: its first stage stops where the correctness estimator
/// says 0.9.
fn learned_task(text: &str) -> String {
    let text = replace(
        text,
        "fusion = { method = \"linear\", weights = { dinov3 = 0.6, siglip2 = 0.4 } }\n# Temp",
        &format!(
            "learned = \"{FILE}\"\nfusion = {{ method = \"learned\", weights = {{ dinov3 = 0.6, siglip2 = 0.4 }} }}\n# Temp"
        ),
    );
    replace(&text, "accept = { confidence = 0.999 }", "accept = { confidence = 0.5, correctness = 0.9 }")
}

fn far() -> Vec<u8> {
    fs::read(root().join("assets/road-work-far.jpg")).unwrap()
}

fn weights(verdict: &Value) -> Vec<f64> {
    let weight = |vote: &Value| vote["weight"].as_f64().map(|weight| (weight * 1e6).round() / 1e6);
    verdict["votes"].as_array().unwrap().iter().filter_map(weight).collect()
}

fn wait_for_reload(client: &Endpoint, outcome: &str, count: f64) {
    client.wait_until(&format!("{outcome} {count} times"), |client| {
        client.metric("concord_config_reloads_total", &[&format!("outcome=\"{outcome}\"")]) >= count
    });
}

#[test]
fn correctness_estimators_and_networks_are_exchanged_while_the_server_runs() {
    let (folder, file) = edited_ensemble(|text| learned_task(&text));
    let both = |dinov3, siglip2| [("dinov3", dinov3), ("siglip2", siglip2)];
    write(folder.path(), &both(0.25, 0.75), &[(&["dinov3"], 0.8)]);
    let server = Server::start(&file);
    let client = &server.client;
    let first = client.classify("roadwork", &far()).body;
    // Sure enough by its confidence, but not by the correctness estimator.
    assert_eq!(
        (&first["stage"], &first["reason"], &first["correctness"]),
        (&json!(2), &json!("accepted"), &Value::Null)
    );
    assert_eq!((weights(&first), &first["fallbacks"]), (vec![0.25, 0.75], &Value::Null), "{first}");
    let p = |vote: usize| first["votes"][vote]["probability"].as_f64().unwrap();
    let fused = first["probability"].as_f64().unwrap();
    // Of two labels: the odds, each to the power of its weight.
    let odds = |probability: f64| probability / (1.0 - probability);
    let expected = odds(p(0)).powf(0.25) * odds(p(1)).powf(0.75);
    assert!((fused - expected / (1.0 + expected)).abs() < 1e-6, "{first}");

    // Another threshold of the correctness estimator.
    fs::write(&file, replace(&fs::read_to_string(&file).unwrap(), "correctness = 0.9", "correctness = 0.7"))
        .unwrap();
    wait_for_reload(client, "applied", 1.0);
    for cache in ["votes", "verdict"] {
        let verdict = client.classify("roadwork", &far()).body;
        assert_eq!((&verdict["stage"], &verdict["cache"]), (&json!(1), &json!(cache)), "{verdict}");
        assert!((verdict["correctness"].as_f64().unwrap() - 0.8).abs() < 1e-6, "{verdict}");
    }
    let stage = &client.get("/v1/tasks").body[0]["stages"][0];
    assert_eq!((&stage["correctness"], &stage["confidence"]), (&json!(0.7), &json!(0.5)));

    // Another file under the same name.
    write(folder.path(), &both(0.5, 0.5), &[(&["dinov3"], 0.6)]);
    wait_for_reload(client, "applied", 2.0);
    let fitted_again = client.classify("roadwork", &far()).body;
    assert_eq!(
        (&fitted_again["stage"], &fitted_again["cache"]),
        (&json!(2), &json!("votes")),
        "{fitted_again}"
    );
    assert_eq!(weights(&fitted_again), [0.5, 0.5]);

    // A damaged one, and one that was fitted to other models, change nothing.
    let intact = fs::read(folder.path().join(FILE)).unwrap();
    fs::write(folder.path().join(FILE), &intact[..intact.len() - 1]).unwrap();
    wait_for_reload(client, "rejected", 1.0);
    write(folder.path(), &[("dinov3", 1.0)], &[(&["siglip2"], 0.5)]);
    wait_for_reload(client, "rejected", 2.0);
    let kept = client.classify("roadwork", &far()).body;
    assert_eq!((&kept["cache"], weights(&kept)), (&json!("verdict"), vec![0.5, 0.5]), "{kept}");
    for fault in [
        "tasks.roadwork.learned: ",
        "not a safetensors file",
        "tasks.roadwork.fusion.method: there are no learned weights for siglip2: fit again",
        "tasks.roadwork.stages[0].accept.correctness: there is no learned correctness estimator for answers of dinov3: fit again",
    ] {
        server.wait_for_log(fault);
    }
    assert_eq!(client.forwards(), 2.0, "no forward for any of them");
}

#[test]
fn a_stage_that_would_count_for_too_little_is_left_out_and_the_verdict_says_so() {
    let (folder, file) = edited_ensemble(|text| {
        let text = learned_task(&text);
        text.replacen("models = [\"siglip2\"]", "min_weight = 0.3\nmodels = [\"siglip2\"]", 1)
    });
    write(folder.path(), &[("dinov3", 0.75), ("siglip2", 0.25)], &[(&["dinov3"], 0.8)]);
    let server = Server::start(&file);
    let verdict = server.client.classify("roadwork", &far()).body;
    assert_eq!((&verdict["stage"], &verdict["reason"]), (&json!(1), &json!("exhausted")), "{verdict}");
    assert_eq!(
        (&verdict["skipped"], verdict["votes"].as_array().unwrap().len()),
        (&json!([2]), 1),
        "{verdict}"
    );
    assert_eq!(server.client.forwards(), 1.0);
    let again = server.client.classify("roadwork", &far()).body;
    assert_eq!((&again["skipped"], &again["cache"]), (&json!([2]), &json!("verdict")), "{again}");
    // Nothing that a verdict has is missing in its description.
    let api = server.client.get("/openapi.json").body;
    for field in ["correctness", "skipped", "fallbacks"] {
        assert!(api["components"]["schemas"]["ClassifyResponse"]["properties"][field].is_object(), "{field}");
    }
}

#[test]
fn without_the_backbone_what_is_configured_counts_and_the_verdict_says_so() {
    let (folder, file) = edited_ensemble(|text| {
        let text = replace(
            &learned_task(&text),
            "models = [\"dinov3\"]\n",
            "models = [\"dinov3\"]\noptional = [\"dinov3\"]\n",
        );
        let text = replace(&text, "siglip2 = 0.4 } }\n# Temp", "siglip2 = 0.3, florence2 = 0.1 } }\n# Temp");
        let text = text.replacen("models = [\"siglip2\"]", "models = [\"siglip2\", \"florence2\"]", 1);
        let florence2 = "[models.florence2]\narchitecture = \"florence2\"\nsnapshot = \"../../models/nano/florence2\"\n\n[models.siglip2]";
        replace(&text, "[models.siglip2]", florence2)
    });
    let weighed = [("dinov3", 0.2), ("siglip2", 0.3), ("florence2", 0.5)];
    write(folder.path(), &weighed, &[(&["dinov3"], 0.8)]);
    let server = FaultyServer::start(&file);
    server.faults.panic_in_next(1);
    let image = photograph(1);
    let failing = server.client.classify("roadwork", &image).body;
    assert_eq!((&failing["votes"][0]["failure"], &failing["complete"]), (&json!("failed"), &json!(false)));
    assert_eq!(weights(&failing), [0.75, 0.25]);
    let expected = json!([{ "part": "weights", "stage": 2, "reason": "backbone_failed" }]);
    assert_eq!(failing["fallbacks"], expected, "{failing}");
    let counted = ["task=\"roadwork\"", "part=\"weights\"", "reason=\"backbone_failed\""];
    assert_eq!(server.client.metric("concord_learned_fallbacks_total", &counted), 1.0);
    // It was not kept: the backbone is asked again, and its votes count as learned.
    let mended = server.client.classify("roadwork", &image).body;
    assert_eq!((&mended["cache"], &mended["fallbacks"]), (&json!("some_votes"), &Value::Null), "{mended}");
    assert_eq!(weights(&mended), [0.2, 0.3, 0.5]);
}

#[test]
fn files_that_cannot_be_used_are_named_with_their_lines() {
    let (folder, file) = edited_ensemble(|text| learned_task(&text));
    let line =
        1 + fs::read_to_string(&file).unwrap().lines().position(|line| line.starts_with("learned")).unwrap();
    let faults = || Ensemble::load(&file).map(|_| ()).unwrap_err().to_string();
    let learned = folder.path().join(FILE);
    let place = format!("ensemble.toml:{line}: tasks.roadwork.learned: \"{FILE}\" cannot be used: ");
    let check = |why: &str| {
        let found = faults();
        assert!(found.contains(&format!("{place}{why}")), "{why:?} is not in {found}");
        assert!(found.ends_with("must be a file that `concord fit` wrote"), "{found}");
    };
    check("No such file");
    fs::create_dir(&learned).unwrap();
    check("not a file");
    fs::remove_dir(&learned).unwrap();
    fs::write(&learned, "a text").unwrap();
    check("not a safetensors file");
    fs::copy(root().join("models/nano/dinov3/head.roadwork.safetensors"), &learned).unwrap();
    check("its format is not");
    // Beside another fault, which does not hide it.
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, replace(&text, "correctness = 0.9", "correctness = 1.9")).unwrap();
    assert_eq!(faults().lines().count(), 2, "{}", faults());
}
