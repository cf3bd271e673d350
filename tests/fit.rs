//! `concord fit` on the photographs of the archive, written into a copy of the configuration.

use std::fs;
use std::path::Path;

use crate::harness::{Run, concord, edited_ensemble, replace, root, two_models};

/// Makes a table of the images of `assets/`, each several times: too few to fit anything well, enough to run
/// the command.
pub(crate) fn table(folder: &Path, times: usize) -> std::path::PathBuf {
    let mut rows = "path,label,group\n".to_owned();
    for index in 0..times {
        for (file, label) in [("road-work-clear.jpg", "road work"), ("camera.png", "no road work")] {
            let name = format!("{index}-{file}");
            let mut image = fs::read(root().join("assets").join(file)).unwrap();
            // Bytes appended to the file change its digest but not the image.
            image.extend(index.to_le_bytes());
            fs::write(folder.join(&name), image).unwrap();
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
fn significantly_better_parts_are_written_with_comments_kept() {
    // At ten times the temperature no answer is confident.
    let (folder, ensemble) = edited_ensemble(|text| {
        format!("# mine\n{}", replace(&text, "calibration = { dinov3 = 0.61", "calibration = { dinov3 = 6.1"))
    });
    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let before = fs::read_to_string(&ensemble).unwrap();
    let dry = fit(&ensemble, &data, votes.path(), &["--dry-run", "--min-accuracy", "0.9"]);
    assert_eq!(dry.status, 0, "{dry:?}");
    assert!(dry.stdout.contains("30 images in 30 groups (15 no road work, 15 road work)"), "{}", dry.stdout);
    assert!(dry.stdout.contains("+calibration = { dinov3 = "), "{}", dry.stdout);
    assert!(dry.stdout.contains("thresholds stay as they are"), "{}", dry.stdout);
    // Without an error, more confidence is always better.
    assert!(
        dry.stdout.contains("Weights and temperatures for each image, by the feature of dinov3: ")
            && dry.stdout.contains("better, but not used: stage 1 makes too few errors to learn from"),
        "{}",
        dry.stdout
    );
    assert!(dry.stdout.contains("Nothing was written (--dry-run)."), "{}", dry.stdout);
    assert_eq!(fs::read_to_string(&ensemble).unwrap(), before);

    let run = fit(&ensemble, &data, votes.path(), &["--min-accuracy", "0.9"]);
    assert_eq!(run.status, 0, "{run:?}");
    let after = fs::read_to_string(&ensemble).unwrap();
    assert!(after.starts_with("# mine\n") && after != before);
    assert_eq!(fs::read_to_string(folder.path().join("ensemble.toml.bak")).unwrap(), before);
    let is_valid = || {
        let validated = concord(&["validate", "--ensemble", ensemble.to_str().unwrap()]);
        assert_eq!(validated.status, 0, "{validated:?}");
    };
    is_valid();
    assert!(!after.contains("learned = \"learned.roadwork"), "{after}");

    // They can be forced, to evaluate them on other images.
    let run = fit(&ensemble, &data, votes.path(), &["--learned", "always"]);
    assert_eq!(run.status, 0, "{run:?}");
    let text = fs::read_to_string(&ensemble).unwrap();
    assert!(text.contains("learned = \"learned.roadwork.v1.safetensors\""), "{text}");
    assert!(text.contains("method = \"learned\""), "{text}");
    is_valid();
    let run = fit(&ensemble, &data, votes.path(), &["--learned", "never", "--dry-run"]);
    assert!(run.status == 0 && !run.stdout.contains("for each image"), "{run:?}");
}

#[test]
fn a_cheap_accurate_model_is_moved_first() {
    // A zero-shot model with swapped prompts, in front of an accurate model.
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
    let reported = "Order of stages: siglip2 → dinov3 becomes dinov3 → siglip2.";
    assert!(run.stdout.contains(reported), "{}", run.stdout);
    let after = fs::read_to_string(&ensemble).unwrap();
    let place = |text: &str| after.find(text).unwrap_or_else(|| panic!("no {text} in {after}"));
    let [good, bad] =
        ["models = [\"dinov3\"] # below it", "models = [\"siglip2\"]          # stop here"].map(place);
    assert!(good < bad, "{after}");
    let validated = concord(&["validate", "--no-load", "--ensemble", ensemble.to_str().unwrap()]);
    assert_eq!(validated.status, 0, "{validated:?}");
}

#[test]
fn unusable_arguments_and_data_are_errors() {
    let (folder, ensemble) = edited_ensemble(|text| text);
    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let before = fs::read_to_string(&ensemble).unwrap();
    let small = tempfile::tempdir().unwrap();
    let few = table(small.path(), 2);
    for (data, more, expected) in [
        (&few, &[][..], "too few groups of images to fit"),
        // Four images, twice, are still four groups.
        (&few, &["--shift", "noise"], "too few groups of images to fit"),
        (&data, &["--holdout", data.to_str().unwrap()], "30 of the images are also in "),
        (&data, &["--min-accuracy", "2"], "must be from 0 to 1"),
        (&data, &["--max-cost-ms", "0"], "must be greater than 0"),
        (&data, &["--max-cost-ms", "5", "--min-accuracy", "0.5"], "cannot be used with"),
        (&data, &["--max-cost-ms", "5", "--price", "dinov3=1"], "cannot be used with"),
        (&data, &["--max-cost", "5"], "--price"),
        (&data, &["--shift", "snow"], "must be one of blur, noise, dark, rain, jpeg, occlusion, or all"),
        (&data, &["--shift", "blur", "--severity", "6"], "must be from 1 to 5, or a range such as 1..5"),
        (&data, &["--severity", "5"], "--shift <NAME>"),
        (&data, &["--copies", "2"], "--shift <NAME>"),
        (&data, &["--shift", "all", "--copies", "31"], "31 is not in 1..=30"),
        (&data, &["--learned", "sometimes"], "[possible values: auto, always, never]"),
        (&data, &["--max-cost", "5", "--price", "dinov3=1"], "no price for siglip2"),
    ] {
        let run = fit(&ensemble, data, votes.path(), more);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(expected), "{expected:?} is missing in {}", run.stderr);
    }
    assert_eq!(fs::read_to_string(&ensemble).unwrap(), before, "nothing was written");
}

#[test]
fn vector_scaling_is_used_and_a_better_temperature_takes_its_place() {
    // As if dinov3 answered "road work" far too often.
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
    let image = root().join("assets/road-work-clear.jpg");
    let label = || {
        let arguments =
            ["classify", "--json", "--ensemble", path, "--task", "roadwork", image.to_str().unwrap()];
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

/// Returns the number of votes in a folder.
fn count_of_votes(folder: &Path) -> usize {
    let files = fs::read_dir(folder).unwrap().map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    files.map(|text| text.lines().count()).sum()
}

#[test]
fn corrupted_copies_are_fitted_on_too() {
    let (folder, ensemble) = (tempfile::tempdir().unwrap(), two_models());
    let (data, votes) = (table(folder.path(), 15), tempfile::tempdir().unwrap());
    let fitted = |more: &[&str]| fit(&ensemble, &data, votes.path(), &[&["--dry-run"], more].concat());
    let plain = fitted(&[]);
    assert_eq!(plain.status, 0, "{plain:?}");
    assert_eq!(count_of_votes(votes.path()), 60, "two models, 30 images");
    // The noise differs from file to file.
    let noise = fitted(&["--shift", "noise", "--severity", "5"]);
    assert_eq!(noise.status, 0, "{noise:?}");
    assert_eq!(count_of_votes(votes.path()), 120, "as many again");
    let images = "30 images in 30 groups (15 no road work, 15 road work)";
    for (shifts, reported) in [
        (&["--shift", "blur", "--severity", "5"][..], "each once more, corrupted by blur 5\n"),
        (
            &["--shift", "blur,dark", "--severity", "2"],
            "each once more, corrupted by one of blur 2, dark 2\n",
        ),
        (&["--shift", "all"], "each once more, corrupted by one of 30 corruptions\n"),
        (&["--shift", "all", "--copies", "3"], "each 3 times more, corrupted by one of 30 corruptions\n"),
        // There are no more copies than corruptions.
        (
            &["--shift", "blur", "--severity", "1,5", "--copies", "3"],
            "each 2 times more, corrupted by one of blur 1, blur 5\n",
        ),
    ] {
        let first = fitted(shifts);
        assert_eq!(first.status, 0, "{first:?}");
        let reported = format!("{images}, and {reported}");
        assert!(first.stdout.contains(&reported), "{reported:?} is missing in {}", first.stdout);
        let asked = count_of_votes(votes.path());
        let second = fitted(shifts);
        assert_eq!((second.status, second.stdout), (0, first.stdout), "{shifts:?}");
        assert_eq!(count_of_votes(votes.path()), asked, "votes come from the disk");
    }
    assert_eq!(fitted(&[]).stdout, plain.stdout, "without --shift nothing changes");
}

#[test]
fn images_in_flight_together_give_the_same_votes_and_faults() {
    let (folder, ensemble) = (tempfile::tempdir().unwrap(), two_models());
    let data = table(folder.path(), 15);
    fs::write(folder.path().join("3-camera.png"), "no image").unwrap();
    fs::remove_file(folder.path().join("7-camera.png")).unwrap();
    let shift = ["--dry-run", "--shift", "noise,rain", "--price", "dinov3=1", "--price", "siglip2=2"];
    let [alone, together] = ["1", "4"].map(|concurrency| {
        let votes = tempfile::tempdir().unwrap();
        let run =
            fit(&ensemble, &data, votes.path(), &[&shift[..], &["--concurrency", concurrency]].concat());
        assert_eq!(run.status, 1, "{run:?}");
        assert!(run.stdout.contains("28 images in 28 groups"), "{}", run.stdout);
        assert!(run.stderr.contains("7-camera.png: "), "{}", run.stderr);
        assert!(run.stderr.contains("corrupted: 2 of 30 images are left out"), "{}", run.stderr);
        assert_eq!(count_of_votes(votes.path()), 112, "two models, 28 images, twice");
        run
    });
    assert_eq!((alone.stdout, alone.stderr), (together.stdout, together.stderr));
}
