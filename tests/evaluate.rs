//! `concord evaluate` on the pictures of `examples/`, sorted by what they show.

use std::fs;
use std::path::Path;

use crate::harness::{Run, concord, root};
use serde_json::Value;

const ROAD_WORK: [&str; 3] = ["road-work-clear.jpg", "road-work-dusk.jpg", "road-work-far.jpg"];
const OTHERS: [&str; 3] = ["camera.png", "chelsea.png", "speed-limit-50.jpg"];

/// A folder for each kind.
fn pictures() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (kind, names) in [("25_road_work", ROAD_WORK), ("99_others", OTHERS)] {
        fs::create_dir(folder.path().join(kind)).unwrap();
        for name in names {
            fs::copy(root().join("examples").join(name), folder.path().join(kind).join(name)).unwrap();
        }
    }
    folder
}

fn evaluate(data: &Path, votes: &Path, more: &[&str]) -> Run {
    let (data, votes) = (data.to_str().unwrap(), votes.to_str().unwrap());
    let arguments = ["evaluate", "--task", "roadwork", "--data", data, "--votes", votes, "--resamples", "50"];
    concord(&[&arguments[..], more].concat())
}

fn answerer<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["answerers"].as_array().unwrap().iter().find(|answerer| answerer["name"] == name).unwrap()
}

#[test]
fn votes_are_asked_for_once_and_compared() {
    let (data, votes) = (pictures(), tempfile::tempdir().unwrap());
    let other = ["--other", "no road work", "--json"];
    let first = evaluate(data.path(), votes.path(), &other);
    assert_eq!(first.status, 0, "{first:?}");
    let report = &first.json_lines()[0];
    assert_eq!(report["pictures"], 6);
    for name in ["dinov3", "siglip2", "all, linear", "all, log_linear", "cascade", "all, uniformly", "oracle"]
    {
        let answerer = answerer(report, name);
        let accuracy = answerer["accuracy"]["value"].as_f64().unwrap();
        assert!((0.5..=1.0).contains(&accuracy), "{name}: {accuracy}");
        let [low, high] = ["low", "high"].map(|end| answerer["accuracy"][end].as_f64().unwrap());
        assert!(low <= accuracy && accuracy <= high, "{name}: {low} to {high}");
        assert!(answerer["milliseconds"]["value"].as_f64().unwrap() > 0.0, "{name}");
    }
    assert_eq!(answerer(report, "cascade")["accuracy"]["value"], 1.0);
    let shares: f64 =
        report["stages"].as_array().unwrap().iter().map(|share| share["value"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    // Measured milliseconds would not be the same twice.
    let second = evaluate(data.path(), votes.path(), &other);
    assert_eq!(second.json_lines(), first.json_lines(), "votes come from the disk");
    // Others are asked for one picture alone.
    fs::copy(root().join("examples/coffee.png"), data.path().join("99_others/coffee.png")).unwrap();
    let third = evaluate(data.path(), votes.path(), &other);
    assert_eq!(third.json_lines()[0]["pictures"], 7);
}

#[test]
fn people_read_a_table() {
    let (data, votes) = (pictures(), tempfile::tempdir().unwrap());
    let run =
        evaluate(data.path(), votes.path(), &["--class", "99_others=no road work", "--group-by", "^(..)"]);
    assert_eq!(run.status, 0, "{run:?}");
    for part in [
        "6 pictures in 2 groups (3 no road work, 3 road work)",
        "MCC",
        "cascade",
        "random escalation",
        "stage 1 (dinov3) answers",
        "too few",
    ] {
        assert!(run.stdout.contains(part), "{part} is missing in {}", run.stdout);
    }
}

#[test]
fn what_cannot_be_compared_is_told() {
    let (data, votes) = (pictures(), tempfile::tempdir().unwrap());
    for (more, expected) in [
        (&[][..], "3 pictures of 1 kinds that mean no label: 99_others; say what they show with --class"),
        (&["--other", "none"], "no label \"none\": there is no road work, road work"),
        (&["--class", "99_others"], "must be FOLDER=LABEL"),
        (&["--group-by", "("], "regex parse error"),
        (&["--other", "no road work", "--group-by", "zzz"], "--group-by finds its part in no picture's name"),
        (
            &["--other", "no road work", "--class", "14_stop=road work"],
            "there are no pictures of \"14_stop\"",
        ),
    ] {
        let run = evaluate(data.path(), votes.path(), more);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    // The same picture twice counts once, and cannot be two things.
    let twice = data.path().join("25_road_work/again.jpg");
    fs::copy(data.path().join("25_road_work").join(ROAD_WORK[0]), &twice).unwrap();
    let run = evaluate(data.path(), votes.path(), &["--other", "no road work", "--json"]);
    assert!(run.stderr.contains("1 pictures are there more than once, and count once"), "{}", run.stderr);
    assert_eq!((run.status, &run.json_lines()[0]["pictures"]), (0, &Value::from(6)));
    fs::rename(&twice, data.path().join("99_others/again.jpg")).unwrap();
    let run = evaluate(data.path(), votes.path(), &["--other", "no road work"]);
    assert!(run.status == 2 && run.stderr.contains("are the same picture with two labels"), "{run:?}");
    fs::remove_file(data.path().join("99_others/again.jpg")).unwrap();
    // A file that is no picture is left out, and said to be.
    fs::write(data.path().join("25_road_work/broken.jpg"), "no picture").unwrap();
    let run = evaluate(data.path(), votes.path(), &["--other", "no road work", "--json"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("1 of 7 pictures are left out"), "{}", run.stderr);
    assert_eq!(run.json_lines()[0]["pictures"], 6);
}
