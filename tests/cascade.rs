//! The shipped cascade: four models, each of which is asked only if those before it are unsure.

use crate::harness::{concord, root};

#[test]
fn the_examples_stop_at_different_stages_with_the_right_label() {
    let file = root().join("ensemble.toml");
    let arguments =
        ["classify", "--json", "--task", "roadwork", "--ensemble", file.to_str().unwrap(), "assets"];
    let verdicts = concord(&arguments).json_lines();
    let mut stages: Vec<u64> = verdicts.iter().map(|verdict| verdict["stage"].as_u64().unwrap()).collect();
    for verdict in &verdicts {
        let image = verdict["input"].as_str().or(verdict["file"].as_str()).unwrap_or_default().to_owned();
        let expected = if image.contains("road-work") { "road work" } else { "no road work" };
        assert_eq!(verdict["label"], expected, "{verdict}");
        let votes = verdict["votes"].as_array().unwrap();
        let expected_votes = match verdict["stage"].as_u64().unwrap() {
            1 => 1,
            2 => 3,
            _ => 4,
        };
        assert_eq!(votes.len(), expected_votes, "{verdict}");
        assert_eq!(verdict["stages"], 3, "the cloud is off: {verdict}");
    }
    stages.sort_unstable();
    stages.dedup();
    assert_eq!(stages, [1, 2, 3]);
}
