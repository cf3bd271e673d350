use super::super::{TaskChange, apply_change};
use super::*;

const ENSEMBLE: &str = include_str!("../../../../ensemble.toml");

fn moved(text: &str, order: &[usize]) -> String {
    with_stages_in(text, "t", order).unwrap()
}

#[test]
fn stages_of_the_real_file_move_with_their_comments() {
    let change =
        TaskChange { order: vec![2, 0, 1, 3], confidences: vec![Some(0.9)], ..TaskChange::default() };
    let after = apply_change(ENSEMBLE, "roadwork", &change).unwrap();
    let begin = ENSEMBLE.find("[[tasks.roadwork.stages]]").unwrap();
    let end = ENSEMBLE.find("[[tasks.roadwork.stages]]                # skipped").unwrap();
    let expected = r#"[[tasks.roadwork.stages]]
models = ["molmo2"]
accept = { confidence = 0.9 }           # below it the answer is given all the same, with the reason "exhausted"

[[tasks.roadwork.stages]]
models = ["dinov3"]
accept = { confidence = 0.999 }          # stop here when the most probable label has at least this probability
# accept = { confidence = 0.999, correctness = 0.99 }    # or: when the correctness estimator returns at least this probability

[[tasks.roadwork.stages]]
models = ["siglip2", "florence2"]        # asked at the same time
optional = ["florence2"]                 # a failure of these does not fail the request
accept = { confidence = 0.95, agreement = true }    # and only if all votes have the same label

"#;
    assert_eq!(after, [&ENSEMBLE[..begin], expected, &ENSEMBLE[end..]].concat());
}

#[test]
fn the_last_stage_leaves_the_comment_of_the_next_table() {
    let after = with_stages_in(ENSEMBLE, "roadwork", &[0, 1, 3, 2]).unwrap();
    let end = "with the reason \"exhausted\"\n\n# ---- Which traffic sign is it? The 43";
    assert!(after.contains(end), "{after}");
    let after = with_stages_in(ENSEMBLE, "traffic_sign", &[2, 1, 0]).unwrap();
    assert!(after.ends_with("models = [\"dinov3\"]\naccept = { confidence = 0.95 }\n"), "{after}");
    assert_eq!(with_stages_in(&after, "traffic_sign", &[2, 1, 0]).unwrap(), ENSEMBLE, "and back");
}

#[test]
fn comments_above_and_below_and_tables_within_go_along() {
    let text = "\
[[tasks.t.stages]] # one
models = [\"a\"]
# under a

# above b
# twice
[[tasks.t.stages]]
models = [\"b\"]
[tasks.t.stages.accept]
confidence = 0.9

# set off, behind b

  [[tasks.t.stages]]
  models = [\"c\"] # c
  # under c

# of the next
[models.a]
";
    let expected = "  [[tasks.t.stages]]
  models = [\"c\"] # c
  # under c

[[tasks.t.stages]] # one
models = [\"a\"]
# under a

# above b
# twice
[[tasks.t.stages]]
models = [\"b\"]
[tasks.t.stages.accept]
confidence = 0.9

# set off, behind b

# of the next
[models.a]
";
    assert_eq!(moved(text, &[2, 0, 1]), expected);
}

#[test]
fn without_empty_lines_and_at_the_end_of_a_file_nothing_is_lost() {
    let text = "[[tasks.t.stages]]\nmodels = [\"a\"]\n# b's\n[[tasks.t.stages]]\nmodels = [\"b\"]";
    let expected = "# b's\n[[tasks.t.stages]]\nmodels = [\"b\"]\n[[tasks.t.stages]]\nmodels = [\"a\"]";
    assert_eq!(moved(text, &[1, 0]), expected);
}

#[test]
fn line_endings_are_kept() {
    let text = "[[tasks.t.stages]]\nmodels = [\"a\"] # a\n\n# b\n[[tasks.t.stages]]\nmodels = [\n  \"b\",\n]\n\n# next\n[models.a]\n";
    let windows = text.replace('\n', "\r\n");
    assert_eq!(moved(&windows, &[1, 0]), moved(text, &[1, 0]).replace('\n', "\r\n"));
    let real = ENSEMBLE.replace('\n', "\r\n");
    let order = [1, 0, 2, 3];
    let after = with_stages_in(&real, "roadwork", &order).unwrap();
    assert_eq!(after, with_stages_in(ENSEMBLE, "roadwork", &order).unwrap().replace('\n', "\r\n"));
}

#[test]
fn elements_of_an_inline_list_change_places() {
    for (text, expected) in [
        (
            "tasks.t.stages = [{ models = [\"a\"] }, { models = [\"b\"] }] # both\n",
            "tasks.t.stages = [{ models = [\"b\"] }, { models = [\"a\"] }] # both\n",
        ),
        (
            "[tasks.t]\nstages = [ # all\n    # a is cheap\n    { models = [\"a\"] }, # a\n    { models = [\"b\"] }\n    # end\n]\n",
            "[tasks.t]\nstages = [ # all\n    { models = [\"b\"] },\n    # a is cheap\n    { models = [\"a\"] } # a\n    # end\n]\n",
        ),
        (
            "[tasks.t]\nstages = [\n    { models = [\"a\"] },\n    { models = [\"b\"] }, # b\n]\n",
            "[tasks.t]\nstages = [\n    { models = [\"b\"] }, # b\n    { models = [\"a\"] },\n]\n",
        ),
    ] {
        assert_eq!(moved(text, &[1, 0]), expected);
    }
}

#[test]
fn stages_that_cannot_be_moved_are_errors_that_name_the_order() {
    // The second table belongs to the first stage only while that stage is the last before it.
    let text = "\
[[tasks.t.stages]]
models = [\"a\", \"x\"]
[models.a]
[tasks.t.stages.accept]
confidence = 0.9
[[tasks.t.stages]]
models = [\"b\"]
[tasks.t.stages.accept]
confidence = 0.8
";
    let error = with_stages_in(text, "t", &[1, 0]).unwrap_err();
    assert!(error.contains("by hand in the order b, a + x"), "{error}");
    for order in [&[1][..], &[1, 1], &[2, 0]] {
        let error = with_stages_in(text, "t", order).unwrap_err();
        assert!(error.contains("has 2 stages"), "{error}");
    }
    assert_eq!(with_stages_in(text, "t", &[0, 1]).unwrap(), text);
    assert_eq!(with_stages_in(text, "t", &[]).unwrap(), text);
}
