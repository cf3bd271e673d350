//! `concord fit` on the photographs of the archive, written into a copy of the configuration.

use std::fs;
use std::path::Path;

use crate::harness::{Run, concord, edited_ensemble, replace, root};

/// A table of the pictures of `examples/`, each several times: too few to fit anything on, enough to go through with it.
pub(crate) fn table(folder: &Path, times: usize) -> std::path::PathBuf {
    let mut rows = "path,label,group\n".to_owned();
    for index in 0..times {
        for (file, label) in [("road-work-clear.jpg", "road work"), ("camera.png", "no road work")] {
            let name = format!("{index}-{file}");
            let mut picture = fs::read(root().join("examples").join(file)).unwrap();
            // Behind its end: another file, the same picture.
            picture.extend(index.to_le_bytes());
            fs::write(folder.join(&name), picture).unwrap();
            rows.push_str(&format!("{name},{label},{index}-{label}\n"));
        }
    }
    let table = folder.join("data.csv");
    fs::write(&table, rows).unwrap();
    table
}

fn fit(ensemble: &Path, data: &Path, votes: &Path, more: &[&str]) -> Run {
    let [ensemble, data, votes] = [ensemble, data, votes].map(|path| path.to_str().unwrap());
    let arguments = ["fit", "--ensemble", ensemble, "--task", "roadwork", "--data", data, "--votes", votes];
    concord(&[&arguments[..], more].concat())
}

#[test]
fn what_is_better_for_sure_is_written_with_comments_kept() {
    // At ten times its temperature nothing is ever sure.
    let (folder, ensemble) = edited_ensemble(|text| {
        format!("# mine\n{}", replace(&text, "calibration = { dinov3 = 0.61", "calibration = { dinov3 = 6.1"))
    });
    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let before = fs::read_to_string(&ensemble).unwrap();
    let dry = fit(&ensemble, &data, votes.path(), &["--dry-run", "--min-accuracy", "0.9"]);
    assert_eq!(dry.status, 0, "{dry:?}");
    assert!(
        dry.stdout.contains("30 pictures in 30 groups (15 no road work, 15 road work)"),
        "{}",
        dry.stdout
    );
    assert!(dry.stdout.contains("+calibration = { dinov3 = "), "{}", dry.stdout);
    assert!(dry.stdout.contains("thresholds stay as they are"), "{}", dry.stdout);
    assert!(dry.stdout.contains("Weights for each image, by the feature of dinov3: "), "{}", dry.stdout);
    assert!(dry.stdout.contains("Nothing is written (--dry-run)."), "{}", dry.stdout);
    assert_eq!(fs::read_to_string(&ensemble).unwrap(), before);

    let run = fit(&ensemble, &data, votes.path(), &["--min-accuracy", "0.9"]);
    assert_eq!(run.status, 0, "{run:?}");
    let after = fs::read_to_string(&ensemble).unwrap();
    assert!(after.starts_with("# mine\n") && after != before);
    assert_eq!(fs::read_to_string(folder.path().join("ensemble.toml.bak")).unwrap(), before);
    let validated = concord(&["validate", "--ensemble", ensemble.to_str().unwrap()]);
    assert_eq!(validated.status, 0, "{validated:?}");
}

#[test]
fn a_good_cheap_model_behind_a_bad_dear_one_is_asked_first() {
    // Zero-shot, with the prompts of the other label, in front of what is right.
    let (folder, ensemble) = edited_ensemble(|text| {
        let text = replace(&text, "\"no road work\" = [", "\"other\" = [");
        let text = replace(&text, "\"road work\" = [", "\"no road work\" = [");
        let text = replace(&text, "\"other\" = [", "\"road work\" = [");
        let text = replace(
            &text,
            "models = [\"dinov3\"]\naccept = { confidence = 0.999 }",
            "models = [\"siglip2\"]",
        );
        replace(
            &text,
            "models = [\"siglip2\"]\naccept = { confidence = 0.70 }           #",
            "models = [\"dinov3\"] #",
        )
    });
    let (data, votes) = (table(folder.path(), 30), tempfile::tempdir().unwrap());
    let prices = ["--price", "siglip2=5", "--price", "dinov3=1"];
    let run = fit(&ensemble, &data, votes.path(), &[&prices[..], &["--min-accuracy", "0.9"]].concat());
    assert_eq!(run.status, 0, "{run:?}");
    let told = "Order of stages: siglip2 → dinov3 becomes dinov3 → siglip2.";
    assert!(run.stdout.contains(told), "{}", run.stdout);
    let after = fs::read_to_string(&ensemble).unwrap();
    let place = |text: &str| after.find(text).unwrap_or_else(|| panic!("no {text} in {after}"));
    let [good, bad] =
        ["models = [\"dinov3\"] # below it", "models = [\"siglip2\"]          # stop here"].map(place);
    assert!(good < bad, "{after}");
    let validated = concord(&["validate", "--no-load", "--ensemble", ensemble.to_str().unwrap()]);
    assert_eq!(validated.status, 0, "{validated:?}");
}

#[test]
fn what_cannot_be_fitted_is_told() {
    let (folder, ensemble) = edited_ensemble(|text| text);
    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let before = fs::read_to_string(&ensemble).unwrap();
    let small = tempfile::tempdir().unwrap();
    let few = table(small.path(), 1);
    for (data, more, expected) in [
        (&few, &[][..], "fewer groups of pictures than are needed"),
        (&data, &["--evaluation", data.to_str().unwrap()], "30 of the pictures are in "),
        (&data, &["--min-accuracy", "2"], "must be from 0 to 1"),
        (&data, &["--max-cost-ms", "0"], "must be greater than 0"),
        (&data, &["--max-cost-ms", "5", "--min-accuracy", "0.5"], "cannot be used with"),
        (&data, &["--max-cost-ms", "5", "--price", "dinov3=1"], "cannot be used with"),
        (&data, &["--max-cost", "5"], "--price"),
        (&data, &["--max-cost", "5", "--price", "dinov3=1"], "no price of siglip2"),
    ] {
        let run = fit(&ensemble, data, votes.path(), more);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    assert_eq!(fs::read_to_string(&ensemble).unwrap(), before, "nothing was written");
}

#[test]
fn vector_scaling_is_used_and_a_better_temperature_takes_its_place() {
    // As if dinov3 said "road work" far too often.
    let scaling = "[tasks.roadwork.scaling.dinov3] # by hand\nscale = [1.0, 1.0]\nbias = [0.0, -50.0]\n";
    let (folder, ensemble) = edited_ensemble(|text| format!("{text}\n{scaling}"));
    let path = ensemble.to_str().unwrap();
    let both = concord(&["validate", "--ensemble", path]);
    assert!(
        both.status != 0 && both.stderr.contains("tasks.roadwork.scaling.dinov3: is given beside"),
        "{both:?}"
    );

    let text = fs::read_to_string(&ensemble).unwrap();
    fs::write(
        &ensemble,
        replace(&text, "calibration = { dinov3 = 0.61, siglip2 = 0.95 }", "calibration = { siglip2 = 0.95 }"),
    )
    .unwrap();
    let picture = root().join("examples/road-work-clear.jpg");
    let label = || {
        let arguments =
            ["classify", "--json", "--ensemble", path, "--task", "roadwork", picture.to_str().unwrap()];
        let run = concord(&arguments);
        assert_eq!(run.status, 0, "{run:?}");
        run.json_lines()[0]["votes"][0]["label"].clone()
    };
    assert_eq!(label(), "no road work");

    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let run = fit(&ensemble, &data, votes.path(), &[]);
    assert_eq!(run.status, 0, "{run:?}");
    let after = fs::read_to_string(&ensemble).unwrap();
    assert!(
        !after.contains("scaling") && after.contains("# by hand") && after.contains("dinov3 = "),
        "{after}"
    );
    assert_eq!(label(), "road work");
}
