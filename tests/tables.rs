//! Tables for people: readable at 80 columns, whole with `--wide`.

use std::fs;
use std::path::Path;

use crate::harness::{concord, root};

/// Returns the output of a command for the shipped ensemble where standard output is no terminal.
fn printed(arguments: &[&str]) -> String {
    let run = concord(&[arguments, &["--ensemble", "ensemble.toml"]].concat());
    assert_eq!(run.status, 0, "{run:?}");
    run.stdout
}

fn assert_narrow(text: &str) {
    let too_long: Vec<&str> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(too_long.is_empty(), "{too_long:#?} in\n{text}");
}

/// Fills a folder with labelled images.
fn labelled(folder: &Path) {
    for (kind, names) in [
        ("road work", ["road-work-clear.jpg", "road-work-far.jpg"]),
        ("no road work", ["camera.png", "coffee.png"]),
    ] {
        fs::create_dir(folder.join(kind)).unwrap();
        for name in names {
            fs::copy(root().join("assets").join(name), folder.join(kind).join(name)).unwrap();
        }
    }
}

#[test]
fn classify_shows_votes_only_where_it_may_be_wide() {
    let narrow = printed(&["classify", "--task", "roadwork", "assets"]);
    assert_narrow(&narrow);
    for part in ["image", "verdict", "confidence", "stage", "reason", "ms", "road-work-far.jpg", "3 of 3"] {
        assert!(narrow.contains(part), "{part} is missing in {narrow}");
    }
    assert!(!narrow.contains("siglip2"), "{narrow}");
    let lines = narrow.lines().count();
    assert_eq!(lines, 2 + 2 + 9 + 3, "a line for each image: {narrow}");
    let wide = printed(&["classify", "--task", "roadwork", "--wide", "assets"]);
    let header = wide.lines().nth(2).unwrap();
    for model in ["dinov3", "siglip2", "florence2", "molmo2"] {
        assert!(header.contains(model), "{model} is missing in {wide}");
    }
    assert!(wide.contains("not asked") && wide.lines().count() == lines, "{wide}");
}

#[test]
fn evaluate_shows_all_measures_only_where_it_may_be_wide() {
    let (data, votes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    labelled(data.path());
    let (data, votes) = (data.path().to_str().unwrap(), votes.path().to_str().unwrap());
    let arguments = ["evaluate", "--task", "roadwork", "--data", data, "--votes", votes, "--resamples", "20"];
    let shifted = [&arguments[..], &["--shift", "jpeg", "--severity", "5"]].concat();
    let narrow = printed(&shifted);
    assert_narrow(&narrow);
    assert!(narrow.contains("MCC") && narrow.contains("cascade") && !narrow.contains("Brier"), "{narrow}");
    let wide = printed(&[&shifted[..], &["--wide"]].concat());
    for part in ["balanced", "Brier", "AURC", "worst class", "reach 3"] {
        assert!(wide.contains(part), "{part} is missing in {wide}");
    }
}

#[test]
fn bench_shows_all_columns_only_where_it_may_be_wide() {
    let arguments = ["bench", "--iterations", "1", "--warmup", "0", "--tokens", "2"];
    let narrow = printed(&arguments);
    assert_narrow(&narrow);
    assert!(narrow.contains("p50 ms") && !narrow.contains("p99 ms"), "{narrow}");
    let wide = printed(&[&arguments[..], &["--wide", "--only", "yes/no"]].concat());
    assert!(wide.contains("p99 ms") && wide.contains("peak GPU"), "{wide}");
}
