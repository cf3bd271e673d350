use toml_edit::DocumentMut;

use super::*;

const ENSEMBLE: &str = include_str!("../../../ensemble.toml");

fn by_model(values: &[(&str, f64)]) -> BTreeMap<String, f64> {
    values.iter().map(|&(model, value)| (model.to_owned(), value)).collect()
}

fn temperatures(values: &[(&str, f64)]) -> TaskChange {
    TaskChange { temperatures: by_model(values), ..TaskChange::default() }
}

fn weights(values: &[(&str, f64)]) -> TaskChange {
    TaskChange { weights: Some(by_model(values)), ..TaskChange::default() }
}

fn method(name: &str) -> TaskChange {
    TaskChange { method: Some(name.to_owned()), ..TaskChange::default() }
}

fn confidences(values: &[Option<f64>]) -> TaskChange {
    TaskChange { confidences: values.to_vec(), ..TaskChange::default() }
}

/// Returns the number at a dotted path of keys and indexes.
fn number(text: &str, path: &str) -> Option<f64> {
    let document: DocumentMut = text.parse().unwrap();
    let mut item = document.as_item();
    for part in path.split('.') {
        item = match part.parse::<usize>() {
            Ok(index) => item.get(index)?,
            Err(_) => item.get(part)?,
        };
    }
    item.as_float()
}

/// Returns the removed and added lines of a diff.
fn changed_lines(before: &str, after: &str) -> Vec<String> {
    let lines = unified_diff(before, after, "ensemble.toml");
    lines.lines().skip(2).filter(|line| line.starts_with(['-', '+'])).map(str::to_owned).collect()
}

#[test]
fn the_real_file_changes_in_these_lines_only() {
    let change = TaskChange {
        temperatures: by_model(&[("dinov3", 0.712_345), ("molmo2", 0.73), ("cloud", 1.25)]),
        weights: Some(by_model(&[("dinov3", 0.512_34), ("siglip2", 0.2), ("cloud", 0.000_123_456)])),
        method: Some("log_linear".to_owned()),
        confidences: vec![Some(0.999_412_345), None, Some(0.9), Some(0.75)],
        ..TaskChange::default()
    };
    let after = apply_change(ENSEMBLE, "roadwork", &change).unwrap();
    let expected = [
        r#"-fusion = { method = "linear", weights = { dinov3 = 0.4, siglip2 = 0.2, florence2 = 0.15, molmo2 = 0.15, cloud = 0.1 } }"#,
        r#"+fusion = { method = "log_linear", weights = { dinov3 = 0.5123, siglip2 = 0.2, florence2 = 0.15, molmo2 = 0.15, cloud = 0.0001235 } }"#,
        "-calibration = { dinov3 = 0.61, siglip2 = 0.95, florence2 = 0.11, molmo2 = 0.73 }",
        "+calibration = { dinov3 = 0.7123, siglip2 = 0.95, florence2 = 0.11, molmo2 = 0.73, cloud = 1.25 }",
        "-accept = { confidence = 0.999 }          # stop here when the most probable label has at least this probability",
        "+accept = { confidence = 0.9994124 }          # stop here when the most probable label has at least this probability",
        r#"-accept = { confidence = 0.85 }           # below it the answer is given all the same, with the reason "exhausted""#,
        r#"+accept = { confidence = 0.9 }           # below it the answer is given all the same, with the reason "exhausted""#,
        "+accept = { confidence = 0.75 }",
    ];
    assert_eq!(changed_lines(ENSEMBLE, &after), expected);
    for (path, value) in [
        ("tasks.roadwork.calibration.dinov3", 0.7123),
        ("tasks.roadwork.calibration.siglip2", 0.95),
        ("tasks.roadwork.calibration.cloud", 1.25),
        ("tasks.roadwork.fusion.weights.cloud", 0.000_123_5),
        ("tasks.roadwork.stages.0.accept.confidence", 0.999_412_4),
        ("tasks.roadwork.stages.1.accept.confidence", 0.95),
        ("tasks.roadwork.stages.3.accept.confidence", 0.75),
        ("tasks.traffic_sign.calibration.dinov3", 1.07),
    ] {
        assert_eq!(number(&after, path), Some(value), "{path}");
    }
    // The last stage's key comes before the comment that introduces the next task.
    assert!(after.contains("for it\naccept = { confidence = 0.75 }\n\n# ---- Which traffic sign"), "{after}");
}

#[test]
fn learned_networks_are_named_and_used() {
    let change = TaskChange {
        method: Some("learned".to_owned()),
        correctness: vec![Some(0.98)],
        learned: Some("learned.roadwork.v1.safetensors".to_owned()),
        ..TaskChange::default()
    };
    let after = apply_change(ENSEMBLE, "roadwork", &change).unwrap();
    for line in [
        r#"+learned = "learned.roadwork.v1.safetensors""#,
        "+accept = { confidence = 0.999, correctness = 0.98 }",
        r#"+fusion = { method = "learned", weights"#,
    ] {
        let changed = changed_lines(ENSEMBLE, &after);
        assert!(changed.iter().any(|found| found.starts_with(line)), "{line:?} is missing in {changed:#?}");
    }
    assert_eq!(apply_change(&after, "roadwork", &change).unwrap(), after, "a second time");
}

#[test]
fn unchanged_values_keep_the_text_byte_for_byte() {
    let said = TaskChange {
        temperatures: by_model(&[("dinov3", 0.61)]),
        weights: Some(by_model(&[("molmo2", 0.150_000_01)])),
        method: Some("linear".to_owned()),
        confidences: vec![Some(0.999), None, None, None, None, None],
        ..TaskChange::default()
    };
    let crlf = ENSEMBLE.replace('\n', "\r\n");
    for text in [ENSEMBLE, crlf.as_str(), ENSEMBLE.trim_end()] {
        for change in [TaskChange::default(), weights(&[]), said.clone()] {
            assert_eq!(apply_change(text, "roadwork", &change).unwrap(), text, "{change:?}");
        }
    }
    assert_eq!(unified_diff(ENSEMBLE, ENSEMBLE, "ensemble.toml"), "");
    // 0.70 stays 0.70.
    let same = confidences(&[None, Some(0.7)]);
    assert_eq!(apply_change(ENSEMBLE, "traffic_sign", &same).unwrap(), ENSEMBLE);
}

#[test]
fn a_difference_reads_like_that_of_diff() {
    assert_eq!(
        unified_diff("1\n2\n3\n4\n5\n6\n", "1\n2\n3\nfour\n5\n6\n", "some.toml"),
        "--- some.toml\n+++ some.toml\n@@ -2,5 +2,5 @@\n 2\n 3\n-4\n+four\n 5\n 6\n"
    );
}

#[test]
fn every_layout_keeps_its_layout() {
    let new = || temperatures(&[("a", 2.0), ("b", 3.0)]);
    let weighed =
        || TaskChange { method: Some("log_linear".to_owned()), ..weights(&[("a", 2.0), ("b", 3.0)]) };
    let cases: Vec<(&str, &str, TaskChange, &str)> = vec![
        (
            "a sub-table, with comments",
            "[tasks.t]\nq = 1\n\n[tasks.t.calibration] # temperatures\n  a  =  1  # of a\n  # end\n\n[x]\n",
            new(),
            "[tasks.t]\nq = 1\n\n[tasks.t.calibration] # temperatures\n  a  =  2.0  # of a\n  b = 3.0\n  # end\n\n[x]\n",
        ),
        (
            "an empty sub-table",
            "[tasks.t]\n[tasks.t.calibration] # none\n",
            new(),
            "[tasks.t]\n[tasks.t.calibration] # none\na = 2.0\nb = 3.0\n",
        ),
        ("a header that ends the text", "[tasks.t]", new(), "[tasks.t]\ncalibration = { a = 2.0, b = 3.0 }"),
        (
            "absent: after fusion",
            "[tasks.t]\nfusion = { method = \"linear\" } # how\nz = 1\n[[tasks.t.stages]]\n",
            new(),
            "[tasks.t]\nfusion = { method = \"linear\" } # how\ncalibration = { a = 2.0, b = 3.0 }\nz = 1\n[[tasks.t.stages]]\n",
        ),
        (
            "absent, and fusion a sub-table: at the end of the task's own keys",
            "[tasks.t]\nz = [\n  1,\n] # list\n\n# how\n[tasks.t.fusion]\nmethod = \"linear\"\n",
            new(),
            "[tasks.t]\nz = [\n  1,\n] # list\ncalibration = { a = 2.0, b = 3.0 }\n\n# how\n[tasks.t.fusion]\nmethod = \"linear\"\n",
        ),
        (
            "absent, and fusion dotted",
            "[tasks.t]\nfusion.method = \"linear\"\nfusion.weights.a = 1\nz = 1\n",
            new(),
            "[tasks.t]\nfusion.method = \"linear\"\nfusion.weights.a = 1\ncalibration = { a = 2.0, b = 3.0 }\nz = 1\n",
        ),
        (
            "dotted",
            "[tasks.t]\ncalibration.a = 1 # a\nz = 1\n",
            new(),
            "[tasks.t]\ncalibration.a = 2.0 # a\ncalibration.b = 3.0\nz = 1\n",
        ),
        (
            "dotted keys that are not together",
            "[tasks.t]\ncalibration.c = 1\nz = 1\ncalibration.a = 1\n",
            new(),
            "[tasks.t]\ncalibration.c = 1\nz = 1\ncalibration.a = 2.0\ncalibration.b = 3.0\n",
        ),
        (
            "dotted from the root",
            "tasks.t.calibration.a = 1\ntasks.t.z = 1\n",
            new(),
            "tasks.t.calibration.a = 2.0\ntasks.t.calibration.b = 3.0\ntasks.t.z = 1\n",
        ),
        (
            "absent, dotted from [tasks]",
            "[tasks]\nt.z = 1\nu.z = 1\n",
            new(),
            "[tasks]\nt.z = 1\nt.calibration = { a = 2.0, b = 3.0 }\nu.z = 1\n",
        ),
        (
            "a task in braces",
            "[tasks]\nt = { fusion = { method = \"linear\" }, z = 1 }\n",
            new(),
            "[tasks]\nt = { fusion = { method = \"linear\" }, calibration = { a = 2.0, b = 3.0 }, z = 1 }\n",
        ),
        (
            "empty braces",
            "[tasks.t]\ncalibration = {  } # none\n",
            new(),
            "[tasks.t]\ncalibration = { a = 2.0, b = 3.0 } # none\n",
        ),
        (
            "braces over several lines, with a comma at the end",
            "[tasks.t]\ncalibration = {\n  c = 1, # c\n  a = 1, # a\n  # end\n}\n",
            new(),
            "[tasks.t]\ncalibration = {\n  c = 1, # c\n  a = 2.0, # a\n  b = 3.0,\n  # end\n}\n",
        ),
        (
            "braces over several lines, without",
            "[tasks.t]\ncalibration = {\n  a = 1 # a\n}\n",
            new(),
            "[tasks.t]\ncalibration = {\n  a = 2.0, # a\n  b = 3.0\n}\n",
        ),
        (
            "a comma at the end of one line",
            "[tasks.t]\ncalibration = { a = 1, }\n",
            new(),
            "[tasks.t]\ncalibration = { a = 2.0, b = 3.0, }\n",
        ),
        (
            "no fusion",
            "[tasks.t]\nz = 1\n\n[tasks.t.prompts]\n",
            TaskChange { temperatures: by_model(&[("a", 2.0)]), ..weighed() },
            "[tasks.t]\nz = 1\nfusion = { method = \"log_linear\", weights = { a = 2.0, b = 3.0 } }\ncalibration = { a = 2.0 }\n\n[tasks.t.prompts]\n",
        ),
        (
            "fusion as tables",
            "[tasks.t]\n[tasks.t.fusion]\nmethod = 'linear' # m\n[tasks.t.fusion.weights]\na = 1.0\nc = 1.0\n",
            weighed(),
            "[tasks.t]\n[tasks.t.fusion]\nmethod = \"log_linear\" # m\n[tasks.t.fusion.weights]\na = 2.0\nc = 1.0\nb = 3.0\n",
        ),
        (
            "fusion without weights",
            "[tasks.t]\nfusion = { method = \"log_linear\" }\n",
            weighed(),
            "[tasks.t]\nfusion = { method = \"log_linear\", weights = { a = 2.0, b = 3.0 } }\n",
        ),
        (
            "weights under a header, and fusion under none",
            "[tasks.t]\n[tasks.t.fusion.weights]\na = 2.0 # a\nb = 3.0\n\n# the next\n[x]\n",
            weighed(),
            "[tasks.t]\n[tasks.t.fusion.weights]\na = 2.0 # a\nb = 3.0\n\n[tasks.t.fusion]\nmethod = \"log_linear\"\n\n# the next\n[x]\n",
        ),
        (
            "weights dotted in braces",
            "[tasks.t]\nfusion = { weights.a = 1.0, method = \"linear\" }\n",
            weighed(),
            "[tasks.t]\nfusion = { weights.a = 2.0, weights.b = 3.0, method = \"log_linear\" }\n",
        ),
        (
            "dotted fusion that has no method",
            "[tasks.t]\nfusion.weights.a = 1\n",
            method("linear"),
            "[tasks.t]\nfusion.weights.a = 1\nfusion.method = \"linear\"\n",
        ),
        (
            "stages: in braces, as a table, dotted, absent",
            "[[tasks.t.stages]]\naccept = { agreement = true, confidence = 1 }\n[[tasks.t.stages]]\n[tasks.t.stages.accept]\nagreement = true\n[[tasks.t.stages]]\naccept.confidence = 0.5 # c\n[[tasks.t.stages]] # last\n",
            confidences(&[Some(0.9), Some(0.8), Some(0.7), Some(0.6)]),
            "[[tasks.t.stages]]\naccept = { agreement = true, confidence = 0.9 }\n[[tasks.t.stages]]\n[tasks.t.stages.accept]\nagreement = true\nconfidence = 0.8\n[[tasks.t.stages]]\naccept.confidence = 0.7 # c\n[[tasks.t.stages]] # last\naccept = { confidence = 0.6 }\n",
        ),
        (
            "stages in brackets",
            "[tasks.t]\nstages = [\n  { models = [\"a\"], accept = { confidence = 0.5 } }, # first\n  { models = [\"b\"] },\n  {},\n]\n",
            confidences(&[Some(0.9), Some(0.8), Some(0.7)]),
            "[tasks.t]\nstages = [\n  { models = [\"a\"], accept = { confidence = 0.9 } }, # first\n  { models = [\"b\"], accept = { confidence = 0.8 } },\n  { accept = { confidence = 0.7 } },\n]\n",
        ),
        (
            "keys in quotes",
            "[tasks.\"t\"]\ncalibration = { \"a\" = 1.0 }\n",
            temperatures(&[("a", 2.0), ("b c", 3.0)]),
            "[tasks.\"t\"]\ncalibration = { \"a\" = 2.0, \"b c\" = 3.0 }\n",
        ),
        (
            "lines that end as on Windows",
            "[tasks.t]\r\nz = 1 # z\r\n\r\n[x]\r\n",
            new(),
            "[tasks.t]\r\nz = 1 # z\r\ncalibration = { a = 2.0, b = 3.0 }\r\n\r\n[x]\r\n",
        ),
        (
            "a byte order mark",
            "\u{feff}[tasks.t]\ncalibration = { a = 1.0 }\n",
            new(),
            "\u{feff}[tasks.t]\ncalibration = { a = 2.0, b = 3.0 }\n",
        ),
        (
            "characters of several bytes",
            "# é→日\n[tasks.t]\nq = \"日\" # é\n",
            new(),
            "# é→日\n[tasks.t]\nq = \"日\" # é\ncalibration = { a = 2.0, b = 3.0 }\n",
        ),
    ];
    for (name, before, change, after) in cases {
        assert_eq!(apply_change(before, "t", &change).as_deref(), Ok(after), "{name}");
    }
    let quoted =
        apply_change("[tasks.\"a b\"]\n[tasks.\"a b\".fusion.weights]\n", "a b", &method("linear")).unwrap();
    assert_eq!(
        quoted,
        "[tasks.\"a b\"]\n[tasks.\"a b\".fusion.weights]\n\n[tasks.\"a b\".fusion]\nmethod = \"linear\"\n"
    );
}

#[test]
fn changes_that_cannot_be_written_are_errors() {
    let text = "[tasks.t]\nfusion = 1\ncalibration = { a = { b = 1 } }\n[[tasks.t.stages]]\n";
    for (text, task, change, message) in [
        ("a = 1\nb = = 2", "t", TaskChange::default(), "not TOML, line 2"),
        (text, "u v", TaskChange::default(), "no task \"u v\": there is no [tasks.\"u v\"]"),
        ("", "t", TaskChange::default(), "no task \"t\""),
        ("tasks = 1", "t", TaskChange::default(), "tasks is integer: must be a table"),
        (text, "t", method("linear"), "tasks.t.fusion is integer: must be a table"),
        (text, "t", temperatures(&[("a", 1.0)]), "tasks.t.calibration.a is inline table: must be 1.0"),
        (text, "t", confidences(&[None, Some(0.5)]), "no stage 1 in tasks.t: there are 1"),
        ("[tasks.t]", "t", confidences(&[Some(0.5)]), "no stage 0 in tasks.t: there are 0"),
        ("[tasks.t]\nstages = 1", "t", confidences(&[Some(0.5)]), "tasks.t.stages must be a list of tables"),
        (
            text,
            "t",
            confidences(&[Some(0.0)]),
            "tasks.t.stages.0.accept.confidence cannot be 0: must be greater than 0",
        ),
        (text, "t", confidences(&[Some(f64::NAN)]), "cannot be NaN"),
        (text, "t", confidences(&[Some(1.5)]), "cannot be 1.5"),
        (
            text,
            "t",
            temperatures(&[("a", f64::INFINITY)]),
            "tasks.t.calibration.a cannot be inf: must be a finite",
        ),
        (text, "t", weights(&[("a b", 0.0)]), "tasks.t.fusion.weights.\"a b\" cannot be 0"),
    ] {
        let error = apply_change(text, task, &change).unwrap_err();
        assert!(error.contains(message), "{error:?} instead of {message:?}");
    }
}

#[test]
fn numbers_are_as_long_as_they_need_to_be() {
    for (value, written) in [
        (0.612_345, 0.6123),
        (1.0, 1.0),
        (12_345.678, 12_350.0),
        (1.234_56e-9, 1.235e-9),
        (0.999_96, 1.0),
        (f64::MAX, f64::MAX),
    ] {
        assert_eq!(as_written(value), written);
    }
    for (value, written) in [
        (1.0, 1.0),
        (0.9994, 0.9994),
        (0.999_412_345, 0.999_412_4),
        (0.999_999_5, 0.999_999_5),
        (0.899_999, 0.9),
        (0.989_999_9, 0.99),
        (0.5, 0.5),
        (0.333_333_333, 0.3334),
        (1.0e-9, 0.0001),
        (f64::MIN_POSITIVE, 0.0001),
        (1.0 - f64::EPSILON / 2.0, 1.0 - f64::EPSILON / 2.0),
    ] {
        assert_eq!(confidence_as_written(value), written, "{value}");
    }
    for step in 1..20_000 {
        let value = 1.0 - (-f64::from(step) / 600.0).exp();
        let written = confidence_as_written(value);
        assert!(value <= written && written < 1.0 || value == 1.0, "{value} as {written}");
        assert!((1.0 - written) >= (1.0 - value) * 0.998 - 1e-15 || value < 0.01, "{value} as {written}");
        assert_eq!(confidence_as_written(written), written, "twice");
        assert_eq!(as_written(as_written(value)), as_written(value), "twice");
    }
}

#[test]
fn a_head_is_named_wherever_heads_are() {
    let after = set_head(ENSEMBLE, "dinov3", "roadwork", "head.roadwork.v2.safetensors").unwrap();
    let expected = [
        r#"-heads = { roadwork = "head.roadwork.safetensors", traffic_sign = "head.traffic_sign.safetensors" }"#,
        r#"+heads = { roadwork = "head.roadwork.v2.safetensors", traffic_sign = "head.traffic_sign.safetensors" }"#,
    ];
    assert_eq!(changed_lines(ENSEMBLE, &after), expected);
    for (before, after) in [
        ("[models.a]\nx = 1 # one\n", "[models.a]\nx = 1 # one\nheads = { t = \"f\" }\n"),
        (
            "[models.a]\nheads = { s = \"g\" } # mine\n",
            "[models.a]\nheads = { s = \"g\", t = \"f\" } # mine\n",
        ),
        ("[models.a.heads]\nt = 'g'\n", "[models.a.heads]\nt = \"f\"\n"),
        ("[models]\na.heads.t = \"g\"\n", "[models]\na.heads.t = \"f\"\n"),
        ("[models.a]\nheads.t = \"f\"\n", "[models.a]\nheads.t = \"f\"\n"),
    ] {
        assert_eq!(set_head(before, "a", "t", "f").as_deref(), Ok(after));
    }
    for (text, message) in [
        ("[models.b]\n", "no model \"a\": there is no [models.a]"),
        ("[models.a]\nheads = 1\n", "models.a.heads is integer: must be a table"),
        ("[models.a]\nheads = { t = {} }\n", "models.a.heads.t is inline table"),
    ] {
        let error = set_head(text, "a", "t", "f").unwrap_err();
        assert!(error.contains(message), "{message:?} is not in {error}");
    }
}
