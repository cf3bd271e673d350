//! `concord validate`, `concord models`, `concord parity` and the help.

use crate::harness::{concord, concord_into_closed_pipe, edited_ensemble, replace};

#[test]
fn the_shipped_configuration_has_no_faults_and_loads() {
    let run = concord(&["validate", "--ensemble", "ensemble.toml"]);
    assert_eq!(
        (run.status, run.stdout.as_str()),
        (0, "ensemble.toml: no faults, and all models load (4 models, 2 tasks)\n"),
        "{run:?}"
    );
}

#[test]
fn all_faults_of_a_file_are_printed_with_their_lines() {
    let run = concord(&["validate", "--ensemble", "tests/fixtures/config/six_faults.toml"]);
    assert_eq!(run.status, 1, "{run:?}");
    let named = run.stderr.lines().filter(|line| line.contains("six_faults.toml:")).count();
    assert!(named >= 6, "{run:?}");
}

#[test]
fn every_model_whose_snapshot_does_not_load_is_reported() {
    let (_folder, file) = edited_ensemble(|text| {
        let text = replace(&text, "\"../../models/nano/siglip2\"", "\"no/such/folder\"");
        replace(&text, "\"../../models/nano/dinov3\"", "\"tests\"")
    });
    let file = file.to_str().unwrap();
    let run = concord(&["validate", "--ensemble", file]);
    assert_eq!(run.status, 1, "{run:?}");
    for expected in ["model dinov3:", "model siglip2:", "no/such/folder/config.json: No such file"] {
        assert!(run.stderr.contains(expected), "{expected:?} is not in {run:?}");
    }
    assert_eq!(concord(&["validate", "--no-load", "--ensemble", file]).status, 0);
}

#[test]
fn labels_that_a_head_was_not_trained_for_are_refused() {
    let (_folder, file) = edited_ensemble(|text| {
        replace(&text, "[\"no road work\", \"road work\"]", "[\"road work\", \"no road work\"]")
    });
    let run = concord(&["validate", "--ensemble", file.to_str().unwrap()]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("was trained for label 0 = \"no road work\""), "{run:?}");
}

#[test]
fn a_missing_device_is_reported() {
    let (_folder, file) = edited_ensemble(|text| text.replace("device = \"auto\"", "device = \"cuda:63\""));
    let run = concord(&["validate", "--ensemble", file.to_str().unwrap()]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("device cuda:63"), "{run:?}");
}

#[test]
fn models_are_listed_with_their_size_and_tasks() {
    let listed = concord(&["models", "--json"]).json_lines();
    let named: Vec<(&str, i64)> = listed
        .iter()
        .map(|model| (model["model"].as_str().unwrap(), model["parameters"].as_i64().unwrap()))
        .collect();
    assert_eq!(named.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["dinov3", "siglip2"]);
    assert!(named.iter().all(|(_, parameters)| (1_000_000..=1_600_000).contains(parameters)), "{named:?}");
    assert_eq!(listed[0]["tasks"], serde_json::json!(["roadwork", "traffic_sign"]));
    assert!(concord(&["models"]).stdout.contains("1.5 M"));
}

#[test]
fn parity_succeeds_on_fixtures_and_fails_on_other_folders() {
    let run = concord(&["parity", "--device", "cpu", "models/tests/fixtures/parity"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert_eq!(run.stdout.matches(": agrees").count(), 7, "{run:?}");
    let run = concord(&["parity", "assets", "models/tests/fixtures/parity/siglip2"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("assets/meta.json") && run.stdout.contains("siglip2: agrees"), "{run:?}");
}

#[test]
fn a_closed_pipe_ends_the_program_quietly() {
    for arguments in
        [["classify", "--task", "roadwork", "assets/coffee.png"].as_slice(), &["models"], &["validate"]]
    {
        let run = concord_into_closed_pipe(arguments);
        assert_eq!((run.status, run.stderr.as_str()), (1, ""), "{arguments:?}: {run:?}");
    }
}

#[test]
fn help_names_every_command() {
    let run = concord(&["--help"]);
    for command in ["bench", "classify", "models", "validate", "parity"] {
        assert!(run.stdout.contains(command), "{run:?}");
    }
    assert_eq!(concord(&[]).status, 2);
}
