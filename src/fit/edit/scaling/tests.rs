use super::super::{apply_change, unified_diff};
use super::*;

const ENSEMBLE: &str = include_str!("../../../../ensemble.toml");

fn scalings(models: &[&str], scale: &[f64], bias: &[f64]) -> TaskChange {
    let scaling = VectorScaling::new(scale.to_vec(), bias.to_vec()).unwrap();
    let scalings = models.iter().map(|model| ((*model).to_owned(), scaling.clone())).collect();
    TaskChange { scalings, ..TaskChange::default() }
}

fn temperatures(values: &[(&str, f64)]) -> TaskChange {
    let temperatures = values.iter().map(|&(model, value)| (model.to_owned(), value)).collect();
    TaskChange { temperatures, ..TaskChange::default() }
}

#[test]
fn the_real_file_has_a_section_behind_its_stages_and_one_temperature_less() {
    let scale: Vec<f64> = (0..43).map(|label| 1.0 + f64::from(label) / 97.0).collect();
    let bias: Vec<f64> = (0..43).map(|label| f64::from(label) / 31.0 - 0.5).collect();
    let change = TaskChange {
        confidences: vec![None, None, Some(0.6)],
        ..scalings(&["dinov3", "siglip2"], &scale, &bias)
    };
    let after = apply_change(ENSEMBLE, "traffic_sign", &change).unwrap();
    let lines = unified_diff(ENSEMBLE, &after, "ensemble.toml");
    let removed: Vec<&str> =
        lines.lines().skip(2).filter(|line| line.starts_with('-')).map(|line| &line[1..]).collect();
    assert_eq!(
        removed,
        [
            "calibration = { dinov3 = 1.07, siglip2 = 1.08, florence2 = 0.078, molmo2 = 0.258 }",
            "accept = { confidence = 0.50 }",
        ]
    );
    assert!(after.contains("\ncalibration = { florence2 = 0.078, molmo2 = 0.258 }\n"), "{lines}");
    assert!(
        after.contains(
            "accept = { confidence = 0.6 }\n\n[tasks.traffic_sign.scaling.dinov3]\nscale = [\n    1.0, 1.01,"
        ),
        "{lines}"
    );
    assert!(after.ends_with(",\n]\n") && after.lines().all(|line| line.len() < 140), "{lines}");
    let table: toml_edit::DocumentMut = after.parse().unwrap();
    for model in ["dinov3", "siglip2"] {
        let numbers = |key: &str| -> Vec<f64> {
            let list = table["tasks"]["traffic_sign"]["scaling"][model][key].as_array().unwrap();
            list.iter().map(|number| number.as_float().unwrap()).collect()
        };
        assert_eq!(numbers("scale"), scale.iter().map(|number| as_written(*number)).collect::<Vec<_>>());
        assert_eq!(numbers("bias"), bias.iter().map(|number| as_written(*number)).collect::<Vec<_>>());
    }
    assert_eq!(apply_change(&after, "traffic_sign", &change).unwrap(), after, "a second time");
    // The reverse replacement.
    let back =
        apply_change(&after, "traffic_sign", &temperatures(&[("dinov3", 1.07), ("siglip2", 1.08)])).unwrap();
    assert!(
        !back.contains("\n[tasks.traffic_sign.scaling") && back.ends_with("accept = { confidence = 0.6 }\n"),
        "{back}"
    );
    assert!(
        back.contains("calibration = { florence2 = 0.078, molmo2 = 0.258, dinov3 = 1.07, siglip2 = 1.08 }"),
        "{back}"
    );
}

#[test]
fn every_layout_gets_scaling_and_loses_its_temperature() {
    let section = "[tasks.t.scaling.a]\nscale = [0.5, 2.0]\nbias = [0.0, -1.5]";
    let braces = "{ scale = [0.5, 2.0], bias = [0.0, -1.5] }";
    let cases = [
        (
            "nothing yet",
            "[tasks.t]\nz = 1 # z\n\n# x\n[x]\n".to_owned(),
            format!("[tasks.t]\nz = 1 # z\n\n{section}\n\n# x\n[x]\n"),
        ),
        (
            "braces: the first",
            "[tasks.t]\ncalibration = { a = 1, b = 2 } # temperatures\n".to_owned(),
            format!("[tasks.t]\ncalibration = {{ b = 2 }} # temperatures\n\n{section}\n"),
        ),
        (
            "braces: the last",
            "[tasks.t]\ncalibration = { b = 2, a = 1 }\n".to_owned(),
            format!("[tasks.t]\ncalibration = {{ b = 2 }}\n\n{section}\n"),
        ),
        (
            "braces: the only one",
            "[tasks.t]\ncalibration = { a = 1 }\n".to_owned(),
            format!("[tasks.t]\ncalibration = {{ }}\n\n{section}\n"),
        ),
        (
            "braces over lines, with comments",
            "[tasks.t]\ncalibration = {\n  b = 2, # b\n  a = 1 # a\n}\n".to_owned(),
            format!("[tasks.t]\ncalibration = {{\n  b = 2 # b\n  # a\n}}\n\n{section}\n"),
        ),
        (
            "braces over lines, with a comma at the end",
            "[tasks.t]\ncalibration = {\n  b = 2,\n  a = 1,\n}\n".to_owned(),
            format!("[tasks.t]\ncalibration = {{\n  b = 2,\n}}\n\n{section}\n"),
        ),
        (
            "a section of its own",
            "[tasks.t]\n[tasks.t.calibration]\na = 1\nb = 2 # b\n".to_owned(),
            format!("[tasks.t]\n[tasks.t.calibration]\nb = 2 # b\n\n{section}\n"),
        ),
        (
            "dotted",
            "[tasks.t]\ncalibration.a = 1\nz = 1\n".to_owned(),
            format!("[tasks.t]\nz = 1\n\n{section}\n"),
        ),
        (
            "a task in braces",
            "[tasks]\nt = { calibration.a = 1, z = 1 }\n".to_owned(),
            format!("[tasks]\nt = {{ z = 1, scaling = {{ a = {braces} }} }}\n"),
        ),
        (
            "a task with dots",
            "[tasks]\nt.calibration.a = 1\nt.z = 1\n".to_owned(),
            format!("[tasks]\nt.z = 1\nt.scaling = {{ a = {braces} }}\n"),
        ),
        (
            "beside another model's",
            "[tasks.t]\n[tasks.t.scaling.b]\nscale = [1, 1]\nbias = [0, 0]\n[x]\n".to_owned(),
            format!("[tasks.t]\n[tasks.t.scaling.b]\nscale = [1, 1]\nbias = [0, 0]\n\n{section}\n[x]\n"),
        ),
        (
            "beside another model's in braces",
            "[tasks.t]\nscaling = { b = { scale = [1, 1], bias = [0, 0] } }\n".to_owned(),
            format!("[tasks.t]\nscaling = {{ b = {{ scale = [1, 1], bias = [0, 0] }}, a = {braces} }}\n"),
        ),
        (
            "numbers in their places",
            "[tasks.t.scaling.a]\nscale = [\n  0.5, # no\n  3, # yes\n]\nbias = [0, 1.5]\n".to_owned(),
            "[tasks.t.scaling.a]\nscale = [\n  0.5, # no\n  2.0, # yes\n]\nbias = [0, -1.5]\n".to_owned(),
        ),
        (
            "lines that end as on Windows",
            "[tasks.t]\r\ncalibration.a = 1\r\nz = 1\r\n".to_owned(),
            format!("[tasks.t]\nz = 1\n\n{section}\n").replace('\n', "\r\n"),
        ),
    ];
    let change = scalings(&["a"], &[0.5, 2.0], &[0.0, -1.5]);
    for (name, before, after) in cases {
        assert_eq!(apply_change(&before, "t", &change), Ok(after), "{name}");
    }
}

#[test]
fn a_temperature_takes_the_place_of_scaling() {
    let cases = [
        (
            "a section",
            "[tasks.t]\nz = 1\n\n[tasks.t.scaling.a] # fitted\nscale = [\n  1,\n  2,\n]\nbias = [0, 0]\n\n[x]\n",
            "[tasks.t]\nz = 1\ncalibration = { a = 1.5 }\n\n# fitted\n\n[x]\n",
        ),
        (
            "braces",
            "[tasks.t]\nscaling = { a = { scale = [1, 2], bias = [0, 0] }, b = { scale = [1, 2], bias = [0, 0] } }\n",
            "[tasks.t]\nscaling = { b = { scale = [1, 2], bias = [0, 0] } }\ncalibration = { a = 1.5 }\n",
        ),
        (
            "a section of models",
            "[tasks.t]\nz = 1\n[tasks.t.scaling]\na.scale = [1, 2]\na.bias = [0, 0]\nb = { scale = [1, 2], bias = [0, 0] }\n",
            "[tasks.t]\nz = 1\ncalibration = { a = 1.5 }\n[tasks.t.scaling]\nb = { scale = [1, 2], bias = [0, 0] }\n",
        ),
        (
            "dotted",
            "[tasks.t]\nscaling.a.scale = [1, 2]\nscaling.a.bias = [0, 0]\nz = 1\n",
            "[tasks.t]\nz = 1\ncalibration = { a = 1.5 }\n",
        ),
    ];
    for (name, before, after) in cases {
        assert_eq!(apply_change(before, "t", &temperatures(&[("a", 1.5)])).as_deref(), Ok(after), "{name}");
    }
}

#[test]
fn changes_that_cannot_be_written_are_errors() {
    let change = scalings(&["a"], &[0.5, 2.0], &[0.0, -1.5]);
    for (text, message) in [
        ("[tasks.t]\nscaling = 1\n", "tasks.t.scaling is integer: must be a table"),
        ("[tasks.t]\nscaling.a = 1\n", "tasks.t.scaling.a is integer: must be a table"),
        (
            "[tasks.t.scaling.a]\nscale = [1]\nbias = [0, 0]\n",
            "tasks.t.scaling.a.scale is array: must be [0.5, 2.0]",
        ),
        ("[x]\n", "no task \"t\""),
    ] {
        let error = apply_change(text, "t", &change).unwrap_err();
        assert!(error.contains(message), "{error:?} instead of {message:?}");
    }
}
