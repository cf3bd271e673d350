//! Tests that validation finds every fault at once.

use std::collections::{BTreeMap, BTreeSet};

use concord_policy::{Policy, PolicyError, ScalingSection, TaskSection};
use serde_json::{Value, json};

use super::{policy, validate};

/// Returns a valid task, for tests to break.
fn valid() -> Value {
    json!({
        "question": "is it?", "labels": ["no", "yes"],
        "fusion": { "method": "linear", "weights": { "dinov3": 0.5, "siglip2": 0.5, "florence2": 1 } },
        "calibration": { "dinov3": 1.3 },
        "stages": [
            { "models": ["dinov3"], "accept": { "confidence": 0.95 } },
            { "models": ["siglip2", "florence2"], "optional": ["florence2"] },
        ],
    })
}

fn messages(result: Result<Policy, Vec<PolicyError>>) -> Vec<String> {
    result.err().unwrap_or_default().iter().map(PolicyError::to_string).collect()
}

#[test]
fn each_fault_is_named_where_it_is() {
    // Each case is a JSON pointer, the value put there, and the message of validation.
    let cases: Vec<(&str, Value, &str)> = vec![
        ("/question", json!(" "), "question: is missing or empty: must be what is asked about the image"),
        ("/labels/1", json!("no"), r#"labels[1]: "no" stands here twice: labels must differ"#),
        ("/labels/1", json!(""), r#"labels[1]: "" is empty: must be a text"#),
        ("/labels", json!(["no"]), "labels: 1 given: must be at least 2"),
        (
            "/fusion/method",
            json!("learned"),
            r#"fusion.method: "learned" needs learned = FILE, which `concord fit` writes"#,
        ),
        (
            "/stages/0/accept",
            json!({ "confidence": 0.9, "correctness": 0.9 }),
            "stages[0].accept.correctness: a correctness estimator needs learned = FILE, which `concord fit` writes",
        ),
        (
            "/stages/0/accept",
            json!({ "confidence": 0.9, "correctness": 0 }),
            "stages[0].accept.correctness: 0 is not a probability: must be greater than 0 and at most 1",
        ),
        (
            "/stages/1/min_weight",
            json!(0.2),
            "stages[1].min_weight: a least weight needs learned = FILE, which `concord fit` writes",
        ),
        (
            "/stages/1/min_weight",
            json!(1),
            "stages[1].min_weight: 1 is not a share: must be greater than 0 and less than 1",
        ),
        (
            "/stages/0/min_weight",
            json!(0.2),
            "stages[0].min_weight: is of no use in the first stage: there is no answer yet without it",
        ),
        ("/learned", json!(" "), "learned: is empty: must be a file that `concord fit` wrote"),
        (
            "/fusion/method",
            json!("log-linear"),
            "fusion.method: \"log-linear\" is not a fusion method: \
             must be one of linear, log_linear, learned",
        ),
        (
            "/fusion/weights",
            json!({ "dinov3": 1, "siglip2": 1 }),
            "fusion.weights.florence2: is missing: must be given for every model of the stages, or for none",
        ),
        (
            "/fusion/weights/dinov3",
            json!(0),
            "fusion.weights.dinov3: 0 is not a weight: must be greater than 0 and finite; a model that should not \
             count costs nothing when you take it out of the stages instead",
        ),
        (
            "/calibration/dinov3",
            json!(-1.5),
            "calibration.dinov3: -1.5 is not a temperature: must be greater than 0 and finite",
        ),
        (
            "/calibration",
            json!({ "dinov2": 1 }),
            "calibration.dinov2: \"dinov2\" is not a configured model: \
             must be one of cloud, dinov3, florence2, siglip2",
        ),
        (
            "/scaling",
            json!({ "siglip": { "scale": [1, 1], "bias": [0, 0] } }),
            "scaling.siglip: \"siglip\" is not a configured model: \
             must be one of cloud, dinov3, florence2, siglip2",
        ),
        (
            "/scaling",
            json!({ "dinov3": { "scale": [1, 1], "bias": [0, 0] } }),
            "scaling.dinov3: is given beside calibration.dinov3: keep one of the two",
        ),
        (
            "/scaling",
            json!({ "siglip2": { "scale": [1, 1, 1], "bias": [0, 0] } }),
            "scaling.siglip2.scale: 3 numbers for 2 labels: must be one for each, in their order",
        ),
        (
            "/scaling",
            json!({ "siglip2": { "scale": [1, 1] } }),
            "scaling.siglip2.bias: is missing or empty: must hold a number for each label, in their order",
        ),
        (
            "/scaling",
            json!({ "siglip2": { "scale": [1, 0], "bias": [0, 0] } }),
            "scaling.siglip2.scale[1]: 0 is not a scale: must be greater than 0 and finite",
        ),
        ("/stages", json!([]), "stages: is missing: must be at least one stage, with the models to ask"),
        (
            "/stages/0/models",
            json!([]),
            "stages[0].models: is missing or empty: must name at least one configured model",
        ),
        (
            "/stages/1/models/1",
            json!("dinov3"),
            r#"stages[1].models[1]: "dinov3" is asked in stages[0] already: a model votes once"#,
        ),
        (
            "/stages/1/optional/0",
            json!("cloud"),
            "stages[1].optional[0]: \"cloud\" is not one of this stage's models: must be one of siglip2, florence2",
        ),
        (
            "/stages/0/accept/confidence",
            json!(1.7),
            "stages[0].accept.confidence: 1.7 is not a confidence: must be greater than 0 and at most 1",
        ),
        (
            "/stages/0/accept/confidence",
            json!(0),
            "stages[0].accept.confidence: 0 is not a confidence: must be greater than 0 and at most 1",
        ),
        (
            "/stages/0/accept",
            json!({ "agreement": true }),
            "stages[0].accept.confidence: is missing: must be greater than 0 and at most 1",
        ),
        (
            "/prompts",
            json!({ "yess": ["a yes"] }),
            "prompts.yess: \"yess\" is not a label of this task: must be one of no, yes",
        ),
        (
            "/prompts",
            json!({ "yes": [] }),
            "prompts.yes: is empty: must hold a prompt, or be left out so that the templates apply",
        ),
        (
            "/prompts",
            json!({ "yes": ["a", ""] }),
            "prompts.yes[1]: is empty: must be a text that stands for the label",
        ),
        (
            "/prompt_templates",
            json!(["a photo"]),
            "prompt_templates[0]: \"a photo\" would be the same for every label: must contain {label}",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut section = valid();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        match section.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            table => table[key] = value,
        }
        let found = messages(validate(section));
        assert!(
            found.iter().any(|message| message == expected),
            "{pointer}: {expected:?} is not in {found:#?}"
        );
    }
}

#[test]
fn a_single_mistake_is_a_single_fault() {
    let mut section = valid();
    section["fusion"]["weights"]["siglip2"] = json!(-1);
    assert_eq!(messages(validate(section)).len(), 1);
    assert_eq!(messages(validate(valid())), Vec::<String>::new());
}

#[test]
fn all_faults_are_found_at_once() {
    let found = messages(validate(json!({
        "labels": ["no"],
        "fusion": { "method": "mean", "weights": { "dinov3": 0 } },
        "stages": [{ "models": ["dino"], "accept": { "confidence": 2 } }, {}],
    })));
    let paths: Vec<&str> = found.iter().filter_map(|message| message.split(": ").next()).collect();
    let expected = [
        "question",
        "labels",
        "fusion.method",
        "fusion.weights.dinov3",
        "stages[0].models[0]",
        "stages[1].models",
        "stages[0].accept.confidence",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn labels_without_prompts_take_the_templates() {
    let mut section = valid();
    assert_eq!(policy(section.clone()).prompts(), [["a photo of no."], ["a photo of yes."]]);
    section["prompts"] = json!({ "no": ["nothing", "none"] });
    section["prompt_templates"] = json!(["{label}, sir", "{label}?"]);
    assert_eq!(policy(section).prompts(), [["nothing", "none"], ["yes, sir", "yes?"]]);
}

#[test]
fn all_that_is_wrong_with_scaling_is_told_at_once() {
    let mut section: TaskSection = serde_json::from_value(valid()).unwrap();
    let scaling = ScalingSection { scale: vec![f64::INFINITY, -1.0, 1.0], bias: vec![f64::NAN, 0.0] };
    section.scaling = BTreeMap::from([("dinov3".to_owned(), scaling.clone()), ("dinov".to_owned(), scaling)]);
    let known = BTreeSet::from(super::MODELS.map(str::to_owned));
    let reported = messages(Policy::from_section(&section, &known));
    let of = |model: &str| {
        [
            format!("scaling.{model}.scale: 3 numbers for 2 labels: must be one for each, in their order"),
            format!("scaling.{model}.scale[0]: inf is not a scale: must be greater than 0 and finite"),
            format!("scaling.{model}.scale[1]: -1 is not a scale: must be greater than 0 and finite"),
            format!("scaling.{model}.bias[0]: NaN is not a bias: must be finite"),
        ]
    };
    for message in [of("dinov"), of("dinov3")].concat() {
        assert!(reported.contains(&message), "{message:?} is missing in {reported:#?}");
    }
    assert_eq!(reported.len(), 10, "and the unknown model, and the two calibrations of one: {reported:#?}");
}

#[test]
fn what_is_not_given_is_neutral_and_required() {
    let policy = policy(json!({
        "question": "is it?", "labels": ["no", "yes"],
        "stages": [{ "models": ["dinov3", "siglip2"], "optional": ["siglip2"] }],
    }));
    let members: Vec<_> = policy
        .members()
        .map(|member| {
            (&**member.model(), member.is_required(), member.weight().get(), member.calibration().to_string())
        })
        .collect();
    assert_eq!(
        members,
        [
            ("dinov3", true, 1.0, "temperature 1".to_owned()),
            ("siglip2", false, 1.0, "temperature 1".to_owned()),
        ]
    );
    assert_eq!(policy.stages()[0].accept(), None);
}
