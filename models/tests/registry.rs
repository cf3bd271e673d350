//! Tests that every architecture of the registry is complete.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use concord_models::{ARCHITECTURES, Capability, ModelOptions, architectures_with, load_model};

fn models() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the `model_type`s of all parity fixtures, each with its snapshot.
fn fixtures() -> Vec<(String, std::path::PathBuf)> {
    let mut found = Vec::new();
    for folder in fs::read_dir(models().join("tests/fixtures/parity")).unwrap() {
        let snapshot = folder.unwrap().path().join("snapshot");
        let config = fs::read_to_string(snapshot.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        found.push((config["model_type"].as_str().unwrap().to_owned(), snapshot));
    }
    found
}

#[test]
fn an_architecture_has_a_fixture_whose_model_can_do_what_it_says() {
    let fixtures = fixtures();
    for architecture in ARCHITECTURES.iter().filter(|one| !one.model_types.is_empty()) {
        let is_own = |(model_type, _): &&(String, _)| architecture.model_types.contains(&model_type.as_str());
        let own: Vec<_> = fixtures.iter().filter(is_own).collect();
        assert!(!own.is_empty(), "{} has no folder in models/tests/fixtures/parity", architecture.name);
        for (_, snapshot) in own {
            let options = ModelOptions {
                architecture: architecture.name.to_owned(),
                snapshot: snapshot.clone(),
                device: "cpu".to_owned(),
                ..ModelOptions::default()
            };
            let model = load_model(&options, Path::new("")).unwrap();
            let name = snapshot.display();
            assert_eq!(model.feature_source().is_some(), architecture.can(Capability::Heads), "{name}");
            assert_eq!(model.generator().is_some(), architecture.can(Capability::Generate), "{name}");
        }
    }
    assert!(architectures_with(Capability::Heads).contains(&"dinov3"));
}

/// Returns the architectures that have no row in a table of `docs/MODELS.md`, which begins with the name in
/// backticks.
fn without_row(docs: &str) -> Vec<&'static str> {
    let begins = |line: &str, name: &str| line.starts_with(&format!("| `{name}`"));
    let has_row = |name: &str| docs.lines().any(|line| begins(line, name));
    ARCHITECTURES.iter().map(|one| one.name).filter(|name| !has_row(name)).collect()
}

#[test]
fn an_architecture_has_a_row_in_the_docs() {
    let docs = fs::read_to_string(models().join("../docs/MODELS.md")).unwrap();
    assert_eq!(without_row(&docs), [""; 0], "add a row to the table of architectures in docs/MODELS.md");
    let less = docs.replace("| `dinov3`", "| `dinov2`");
    assert_eq!(without_row(&less), ["dinov3"]);
}

#[test]
fn names_and_options_are_told_apart() {
    let names: BTreeSet<&str> = ARCHITECTURES.iter().map(|one| one.name).collect();
    assert_eq!(names.len(), ARCHITECTURES.len());
    for architecture in ARCHITECTURES {
        for option in architecture.options {
            assert!(option.doc.ends_with('.'), "{}: {} needs a sentence", architecture.name, option.name);
        }
    }
}
