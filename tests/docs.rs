//! Tests the documentation: its words, its size, and its agreement with the repository.

use std::fs;
use std::path::PathBuf;

use regex::Regex;

use crate::harness::root;

/// The README is read before anything else: what does not fit belongs in `docs/`.
const README_BYTES_MAX: usize = 8_000;

/// Words with a standard one that says the same, as patterns without regard to case.
const BANNED: [(&str, &str); 13] = [
    (r"\bpictures?\b", "image"),
    (r"\bworsen(ing|ed)\b|\bmade worse\b", "corruption, corrupted"),
    (r"\b(un)?told\b|\btells?\b", "reported, printed, says"),
    (r"\bforetell(s|ing)?\b|\bforetold\b", "predict"),
    (r"\bfor sure\b|\bsurer\b", "significantly, more confident"),
    (r"\b(learned|correctness) gates?\b|\bits gate\b", "correctness estimator"),
    (r"\bleft_alone\b|\bleft alone\b", "circuit_open"),
    (r"\brubbish\b", "corrupt"),
    (r"\banswerers?\b", "strategy"),
    (r"\bdealt\b|\bhearings?\b", "assigned, tally"),
    (r"\bconcord_config_fault\b", "concord_config_faults"),
    (r"\bput right\b", "fix"),
    (r"--(every|use|evaluation|other)\b", "--stride, --apply, --holdout, --default-label"),
];

/// Returns every page for people, relative to the repository's root.
fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "assets", "models/nano", "models/tests/reference"];
    let files = folders.iter().flat_map(|folder| fs::read_dir(root().join(folder)).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let mut pages: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect();
    pages.sort();
    pages
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn pages_use_standard_words() {
    let mut found = Vec::new();
    for page in pages() {
        let name = page.strip_prefix(root()).unwrap().display().to_string();
        for (number, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            // The table of what was renamed.
            if name == "CHANGELOG.md" && line.starts_with("  |") {
                continue;
            }
            for (banned, standard) in BANNED {
                if let Some(word) = Regex::new(&format!("(?i){banned}")).unwrap().find(line) {
                    let (number, word) = (number + 1, word.as_str());
                    found.push(format!("{name}:{number}: {word:?}: write {standard}"));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn links_lead_somewhere() {
    let link = Regex::new(r"\]\(([^)#\s:]+)(#[^)]*)?\)").unwrap();
    let mut broken = Vec::new();
    for page in pages() {
        for target in link.captures_iter(&fs::read_to_string(&page).unwrap()).map(|found| found[1].to_owned())
        {
            if !page.parent().unwrap().join(&target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Checks that every path that the pages mention exists.
#[test]
fn paths_exist() {
    let path =
        Regex::new(r"`((?:actors|assets|benches|deploy|docs|models|policy|src|tests)/[\w./-]*)`").unwrap();
    let mut missing = Vec::new();
    for page in pages().into_iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        for found in path.captures_iter(&fs::read_to_string(&page).unwrap()) {
            if !root().join(&found[1]).exists() {
                missing.push(format!("{}: {}", page.display(), &found[1]));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn the_readme_is_short_and_shows_the_shipped_cascade() {
    let readme = read("README.md");
    assert!(readme.len() <= README_BYTES_MAX, "README.md has {} bytes of {README_BYTES_MAX}", readme.len());
    let block = readme.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let ensemble = read("ensemble.toml");
    let mut shipped = ensemble.lines();
    for line in block.lines().filter(|line| !line.is_empty()) {
        assert!(shipped.any(|other| other == line), "not in ensemble.toml, or in another order: {line}");
    }
    let width = readme.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(width <= 140, "README.md has a line of {width} characters");
}

#[test]
fn every_metric_is_documented() {
    let page = read("docs/OPERATIONS.md");
    let name =
        Regex::new(r#"(?:counters|gauges|histograms|::new|register_counter)\(\s*"([a-z_]+)""#).unwrap();
    let source = ["actors/src/metrics.rs", "src/telemetry/counters.rs"].map(read).concat();
    let names: Vec<&str> = name.captures_iter(&source).map(|found| found.get(1).unwrap().as_str()).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(
            page.contains(&format!("`concord_{name}")),
            "docs/OPERATIONS.md has no row for concord_{name}"
        );
    }
}
