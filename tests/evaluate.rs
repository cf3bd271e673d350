//! `concord evaluate` on the images of `assets/`, in a folder for each label.

use std::fs;
use std::path::Path;

use crate::harness::{Run, concord, root};
use serde_json::Value;

const ROAD_WORK: [&str; 3] = ["road-work-clear.jpg", "road-work-dusk.jpg", "road-work-far.jpg"];
const OTHERS: [&str; 3] = ["camera.png", "chelsea.png", "speed-limit-50.jpg"];

/// Makes a data set with a folder for each kind of image.
fn images() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (kind, names) in [("25_road_work", ROAD_WORK), ("99_others", OTHERS)] {
        fs::create_dir(folder.path().join(kind)).unwrap();
        for name in names {
            fs::copy(root().join("assets").join(name), folder.path().join(kind).join(name)).unwrap();
        }
    }
    folder
}

fn evaluate(data: &Path, votes: &Path, more: &[&str]) -> Run {
    let (data, votes) = (data.to_str().unwrap(), votes.to_str().unwrap());
    let arguments = ["evaluate", "--task", "roadwork", "--data", data, "--votes", votes, "--resamples", "50"];
    concord(&[&arguments[..], more].concat())
}

fn strategy<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["strategies"].as_array().unwrap().iter().find(|strategy| strategy["name"] == name).unwrap()
}

#[test]
fn votes_are_asked_for_once_and_compared() {
    let (data, votes) = (images(), tempfile::tempdir().unwrap());
    let other = ["--default-label", "no road work", "--json"];
    let first = evaluate(data.path(), votes.path(), &other);
    assert_eq!(first.status, 0, "{first:?}");
    let report = &first.json_lines()[0];
    assert_eq!(report["images"], 6);
    for name in ["dinov3", "siglip2", "all, linear", "all, log_linear", "cascade", "all, uniformly", "oracle"]
    {
        let strategy = strategy(report, name);
        let accuracy = strategy["accuracy"]["value"].as_f64().unwrap();
        assert!((0.5..=1.0).contains(&accuracy), "{name}: {accuracy}");
        let [low, high] = ["low", "high"].map(|end| strategy["accuracy"][end].as_f64().unwrap());
        assert!(low <= accuracy && accuracy <= high, "{name}: {low} to {high}");
        assert!(strategy["milliseconds"]["value"].as_f64().unwrap() > 0.0, "{name}");
    }
    assert_eq!(strategy(report, "cascade")["accuracy"]["value"], 1.0);
    let shares: f64 =
        report["stages"].as_array().unwrap().iter().map(|share| share["value"].as_f64().unwrap()).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{shares}");
    // Milliseconds that were measured again would differ.
    let second = evaluate(data.path(), votes.path(), &other);
    assert_eq!(second.json_lines(), first.json_lines(), "votes come from the disk");
    // Only the new image is sent to the models.
    fs::copy(root().join("assets/coffee.png"), data.path().join("99_others/coffee.png")).unwrap();
    let third = evaluate(data.path(), votes.path(), &other);
    assert_eq!(third.json_lines()[0]["images"], 7);
}

#[test]
fn people_read_a_table() {
    let (data, votes) = (images(), tempfile::tempdir().unwrap());
    let run =
        evaluate(data.path(), votes.path(), &["--class", "99_others=no road work", "--group-by", "^(..)"]);
    assert_eq!(run.status, 0, "{run:?}");
    for part in [
        "6 images in 2 groups (3 no road work, 3 road work)",
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
fn unusable_arguments_and_data_are_errors() {
    let (data, votes) = (images(), tempfile::tempdir().unwrap());
    for (more, expected) in [
        (&[][..], "3 images have 1 unknown labels: 99_others; map each with --class"),
        (&["--default-label", "none"], "no label \"none\": there is no road work, road work"),
        (&["--class", "99_others"], "must be FOLDER=LABEL"),
        (&["--group-by", "("], "regex parse error"),
        (&["--default-label", "no road work", "--group-by", "zzz"], "--group-by matches no image's name"),
        (
            &["--default-label", "no road work", "--class", "14_stop=road work"],
            "there are no images of \"14_stop\"",
        ),
    ] {
        let run = evaluate(data.path(), votes.path(), more);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    // A duplicate image counts once, and cannot have two labels.
    let twice = data.path().join("25_road_work/again.jpg");
    fs::copy(data.path().join("25_road_work").join(ROAD_WORK[0]), &twice).unwrap();
    let run = evaluate(data.path(), votes.path(), &["--default-label", "no road work", "--json"]);
    assert!(run.stderr.contains("1 images are duplicates and are counted once"), "{}", run.stderr);
    assert_eq!((run.status, &run.json_lines()[0]["images"]), (0, &Value::from(6)));
    fs::rename(&twice, data.path().join("99_others/again.jpg")).unwrap();
    let run = evaluate(data.path(), votes.path(), &["--default-label", "no road work"]);
    assert!(run.status == 2 && run.stderr.contains("are the same image with two labels"), "{run:?}");
    fs::remove_file(data.path().join("99_others/again.jpg")).unwrap();
    // A file that is not an image is left out, with a warning.
    fs::write(data.path().join("25_road_work/broken.jpg"), "no image").unwrap();
    let run = evaluate(data.path(), votes.path(), &["--default-label", "no road work", "--json"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("1 of 7 images are left out"), "{}", run.stderr);
    assert_eq!(run.json_lines()[0]["images"], 6);
}

#[test]
fn costs_are_prices_where_they_are_given() {
    let (data, votes) = (images(), tempfile::tempdir().unwrap());
    let prices = ["--default-label", "no road work", "--price", "dinov3=1", "--price", "siglip2=0"];
    let run = evaluate(data.path(), votes.path(), &[&prices[..], &["--json"]].concat());
    assert_eq!(run.status, 0, "{run:?}");
    let report = &run.json_lines()[0];
    for (name, price) in
        [("dinov3", 1.0), ("siglip2", 0.0), ("all, linear", 1.0), ("always the cheapest, siglip2", 0.0)]
    {
        let reported = &strategy(report, name)["price"]["value"];
        assert_eq!(reported.as_f64(), Some(price), "{name}: {reported}");
        assert!(strategy(report, name)["milliseconds"].is_null(), "{name}");
    }
    let table = evaluate(data.path(), votes.path(), &prices);
    assert!(table.stdout.contains(" price\n") && !table.stdout.contains(" ms\n"), "{}", table.stdout);
    for (more, expected) in [
        (&["--price", "gpt=1"], "asks no model \"gpt\": there is dinov3, siglip2"),
        (&["--price", "siglip2=1"], "--price siglip2=… is given twice"),
        (&["--price", "dinov3=-1"], "the amount 0 or more"),
        (&["--price", "dinov3"], "must be MODEL=AMOUNT"),
    ] {
        let run = evaluate(data.path(), votes.path(), &[&prices[..], more].concat());
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    let run = evaluate(data.path(), votes.path(), &prices[..4]);
    assert!(
        run.status == 2 && run.stderr.contains("no price for siglip2: give one for every model"),
        "{run:?}"
    );
}

#[test]
fn a_report_needs_nothing_but_itself_and_plots_are_files() {
    let (data, votes, out) = (images(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A mistake for the contact sheet: the label is wrong.
    fs::rename(data.path().join("25_road_work").join(ROAD_WORK[0]), data.path().join("99_others/<b>.jpg"))
        .unwrap();
    let (html, plots) = (out.path().join("report.html"), out.path().join("a/b"));
    let [html_argument, plots_argument] = [&html, &plots].map(|path| path.to_str().unwrap());
    let arguments = [
        "--default-label",
        "no road work",
        "--html",
        html_argument,
        "--plots",
        plots_argument,
        "--shift",
        "dark",
    ];
    let run = evaluate(data.path(), votes.path(), &arguments);
    assert_eq!(run.status, 0, "{run:?}");
    let page = fs::read_to_string(&html).unwrap();
    for part in [
        "<svg ",
        "data:image/jpeg;base64,",
        "cascade",
        "road work",
        "&lt;b&gt;.jpg",
        "1 of 1 wrong answers",
        "dark 5",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    for part in ["<script", "<link", "src=\"http", "href=\"http", "url(", "<b>.jpg"] {
        assert!(!page.contains(part), "{part} is there");
    }
    assert!(page.len() < 2_000_000, "{} bytes", page.len());
    for name in [
        "accuracy_cost",
        "reliability_cascade",
        "reliability_dinov3",
        "reliability_siglip2",
        "confusion",
        "confidence",
        "shift_accuracy",
        "shift_ece",
    ] {
        let svg = fs::read_to_string(plots.join(format!("{name}.svg"))).unwrap();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{name}");
        let png = image::open(plots.join(format!("{name}.png"))).unwrap();
        assert!(png.width() > 500, "{name}");
    }
    let nowhere = out.path().join("nowhere/report.html");
    let run = evaluate(data.path(), votes.path(), &["--html", nowhere.to_str().unwrap()]);
    assert!(run.status == 2 && run.stderr.contains("name a file in an existing folder"), "{run:?}");
}

#[test]
fn corrupted_images_are_asked_about_once() {
    let (data, votes) = (images(), tempfile::tempdir().unwrap());
    let shift =
        ["--default-label", "no road work", "--json", "--shift", "noise,jpeg", "--severity", "2,4..5"];
    let first = evaluate(data.path(), votes.path(), &shift);
    assert_eq!(first.status, 0, "{first:?}");
    let shifts = first.json_lines()[0]["shifts"].as_array().unwrap().clone();
    let reported: Vec<(Option<&str>, u64)> =
        shifts.iter().map(|one| (one["shift"].as_str(), one["severity"].as_u64().unwrap())).collect();
    let (noise, jpeg) = (Some("noise"), Some("jpeg"));
    assert_eq!(reported, [(None, 0), (noise, 2), (noise, 4), (noise, 5), (jpeg, 2), (jpeg, 4), (jpeg, 5)]);
    for shift in &shifts {
        assert_eq!(shift["images"], 6, "{shift}");
        let names: Vec<&str> = shift["strategies"]
            .as_array()
            .unwrap()
            .iter()
            .map(|strategy| strategy["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["cascade", "dinov3", "siglip2", "all, uniformly"]);
        assert_eq!(shift["reached"][0]["value"], 1.0, "every image gets to stage 1");
    }
    let nll = |index: usize| strategy(&shifts[index], "dinov3")["nll"]["value"].as_f64().unwrap();
    // With so few images, some corruptions may make the task easier by chance.
    assert!((nll(3) - nll(0)).abs() > 1e-3, "models are asked about other images: {} and {}", nll(3), nll(0));
    // Milliseconds that were measured again would differ.
    assert_eq!(evaluate(data.path(), votes.path(), &shift).json_lines(), first.json_lines());
    let table = evaluate(
        data.path(),
        votes.path(),
        &["--default-label", "no road work", "--shift", "jpeg", "--stride", "3", "--wide"],
    );
    for part in ["2 images in 2 groups (1 no road work, 1 road work)", "clean", "jpeg 1", "reach 2"] {
        assert!(table.stdout.contains(part), "{part} is missing in {}", table.stdout);
    }
    for (more, expected) in [
        (&["--shift", "snow"][..], "must be one of blur, noise, dark, rain, jpeg, occlusion, or all"),
        (&["--shift", "blur", "--severity", "6"], "must be from 1 to 5, or a range such as 1..5"),
        (&["--stride", "0"], "0 is not in 1..=1000000"),
    ] {
        let run = evaluate(data.path(), votes.path(), more);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
}
