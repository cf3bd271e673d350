//! Tests decisions, case by case.

use concord_policy::{
    Calibration, Context, Decision, Failure, Logits, LogitsError, Policy, StopReason, VectorScaling, Vote,
    decide,
};
use serde_json::json;

use super::{failed, policy, vote};

/// Returns a cascade for two labels: dinov3 at 0.9, then siglip2 with florence2 (optional) at 0.8 in
/// agreement, then cloud (optional).
fn cascade() -> serde_json::Value {
    json!({
        "question": "is it?", "labels": ["no", "yes"],
        "stages": [
            { "models": ["dinov3"], "accept": { "confidence": 0.9 } },
            { "models": ["siglip2", "florence2"], "optional": ["florence2"],
              "accept": { "confidence": 0.8, "agreement": true } },
            { "models": ["cloud"], "optional": ["cloud"] },
        ],
    })
}

/// Formats a decision in one line, so that a table of them is readable.
fn summary(decision: &Decision) -> String {
    match decision {
        Decision::Ask { stage } => format!("ask {stage}"),
        Decision::Verdict(answer) => format!(
            "{} at {}: label {}, {}{}",
            answer.reason,
            answer.stage,
            answer.label(),
            if answer.agreement { "agreed" } else { "disputed" },
            if answer.is_complete() { "" } else { ", incomplete" },
        ),
        Decision::Failed(failure) => failure.to_string(),
    }
}

#[test]
fn a_cascade_goes_on_until_a_stage_is_sure() {
    let (sure_yes, sure_no) = ([0.0, 5.0], [5.0, 0.0]);
    let unsure_yes = [0.0, 0.5];
    let cases: Vec<(&str, Vec<Vote>, &str)> = vec![
        ("nobody has voted", vec![], "ask 0"),
        ("the first is sure", vec![vote("dinov3", &sure_yes)], "accepted at 0: label 1, agreed"),
        ("the first is unsure", vec![vote("dinov3", &unsure_yes)], "ask 1"),
        ("half of a stage has voted", vec![vote("dinov3", &unsure_yes), vote("siglip2", &sure_yes)], "ask 1"),
        (
            "sure together, and agreed",
            vec![vote("dinov3", &unsure_yes), vote("siglip2", &sure_yes), vote("florence2", &sure_yes)],
            "accepted at 1: label 1, agreed",
        ),
        (
            "sure together, but not agreed",
            vec![vote("dinov3", &[0.1, 0.0]), vote("siglip2", &[0.0, 9.0]), vote("florence2", &[0.0, 9.0])],
            "ask 2",
        ),
        (
            "an optional model fails and the rest suffices",
            vec![vote("dinov3", &[0.0, 2.0]), vote("siglip2", &sure_yes), failed("florence2")],
            "accepted at 1: label 1, agreed, incomplete",
        ),
        (
            "no stage is sure",
            vec![
                vote("dinov3", &unsure_yes),
                vote("siglip2", &sure_no),
                vote("florence2", &unsure_yes),
                vote("cloud", &sure_no),
            ],
            "exhausted at 2: label 0, disputed",
        ),
        (
            "the last stage fails, being optional",
            vec![
                vote("dinov3", &unsure_yes),
                vote("siglip2", &unsure_yes),
                failed("florence2"),
                failed("cloud"),
            ],
            "incomplete at 2: label 1, agreed, incomplete",
        ),
        ("a required model fails", vec![failed("dinov3")], "required model dinov3 failed: out of memory"),
        (
            "a vote is about another number of labels",
            vec![vote("dinov3", &[0.0, 1.0, 2.0])],
            "required model dinov3 failed: 3 logits for 2 labels",
        ),
        (
            "later votes do not change an earlier acceptance",
            vec![vote("cloud", &sure_no), vote("siglip2", &sure_no), vote("dinov3", &sure_yes)],
            "accepted at 0: label 1, agreed",
        ),
        (
            "a model's second vote does not count",
            vec![vote("dinov3", &sure_no), vote("dinov3", &sure_yes)],
            "accepted at 0: label 0, agreed",
        ),
        ("a stranger's vote does not count", vec![vote("stranger", &sure_yes)], "ask 0"),
    ];
    let policy = policy(cascade());
    for (case, votes, expected) in cases {
        assert_eq!(summary(&decide(&policy, &votes, &Context::default())), expected, "{case}");
    }
}

#[test]
fn a_stage_stands_in_for_a_busy_one_and_where_it_fails_the_busy_one_is_asked() {
    let mut section = cascade();
    section["stages"][2]["burst_queue_depth"] = 10.into();
    let policy = policy(section);
    let sure_yes = [0.0, 5.0];
    let busy = |model: &str, depth| Context { queue_depths: [(model.into(), depth)].into() };
    let cases: Vec<(&str, Vec<Vote>, Context, &str)> = vec![
        ("the queue is just short enough", vec![], busy("dinov3", 10), "ask 0"),
        ("the first stage is busy", vec![], busy("dinov3", 11), "ask 2"),
        ("the second stage is busy", vec![vote("dinov3", &[0.0, 0.5])], busy("florence2", 11), "ask 2"),
        ("another model is busy", vec![], busy("siglip2", 11), "ask 0"),
        (
            "what stands in has voted",
            vec![vote("cloud", &sure_yes)],
            busy("dinov3", 0),
            "exhausted at 2: label 1, agreed",
        ),
        ("what stands in has failed", vec![failed("cloud")], busy("dinov3", 99), "ask 0"),
        (
            "what stands in has failed, and the first is sure",
            vec![failed("cloud"), vote("dinov3", &sure_yes)],
            busy("dinov3", 99),
            "accepted at 0: label 1, agreed",
        ),
        (
            "what stands in has voted beside the first",
            vec![vote("dinov3", &[0.0, 0.5]), vote("cloud", &sure_yes)],
            busy("siglip2", 0),
            "exhausted at 2: label 1, agreed",
        ),
    ];
    for (case, votes, context, expected) in cases {
        let decision = decide(&policy, &votes, &context);
        assert_eq!(summary(&decision), expected, "{case}");
        if let Decision::Verdict(answer) = decision {
            assert_eq!(answer.burst, answer.stage == 2, "{case}");
            assert_eq!(answer.is_lasting(), !answer.burst, "{case}");
        }
    }
}

#[test]
fn a_policy_without_a_model_has_no_empty_stages() {
    let policy = policy(cascade());
    let without = policy.without(|model| model == "cloud").unwrap();
    assert_eq!(without.stages().len(), 2);
    assert!(policy.without(|_| true).is_none());
    assert_eq!(policy.without(|_| false).as_ref(), Some(&policy));
}

#[test]
fn stages_may_be_put_in_another_order_but_none_first_that_needs_one_before() {
    let mut section = cascade();
    section["stages"][2]["burst_queue_depth"] = json!(5);
    let policy = policy(section);
    let swapped = policy.in_order(&[1, 0, 2]).unwrap();
    assert_eq!(swapped.stages()[0], policy.stages()[1]);
    assert_eq!(swapped.in_order(&[1, 0, 2]), Some(policy.clone()), "and back");
    for order in [&[][..], &[0, 1], &[0, 0, 1], &[0, 1, 3], &[0, 1, 2, 2], &[2, 0, 1]] {
        assert_eq!(policy.in_order(order), None, "{order:?}");
    }
}

#[test]
fn a_stage_where_everything_optional_failed_passes_the_question_on() {
    let policy = policy(json!({
        "question": "is it?", "labels": ["no", "yes"],
        "stages": [
            { "models": ["dinov3"], "optional": ["dinov3"], "accept": { "confidence": 0.5 } },
            { "models": ["siglip2"], "optional": ["siglip2"], "accept": { "confidence": 0.5 } },
        ],
    }));
    assert_eq!(decide(&policy, &[failed("dinov3")], &Context::default()), Decision::Ask { stage: 1 });
    assert_eq!(
        decide(&policy, &[failed("dinov3"), failed("siglip2")], &Context::default()),
        Decision::Failed(Failure::NoVote)
    );
    let Decision::Verdict(answer) =
        decide(&policy, &[failed("dinov3"), vote("siglip2", &[0.0, 3.0])], &Context::default())
    else {
        panic!("a vote that succeeded is answered");
    };
    assert_eq!((answer.reason, answer.stage, answer.is_complete()), (StopReason::Accepted, 1, false));
}

#[test]
fn fusion_weighs_calibrated_probabilities() {
    // dinov3 gives odds 4:1 for "no", halved in the exponent by its temperature to 2:1; siglip2 1:3.
    let votes = [vote("dinov3", &[4.0_f32.ln(), 0.0]), vote("siglip2", &[0.0, 3.0_f32.ln()])];
    let linear = 0.6 * (2.0 / 3.0) + 0.4 * 0.25;
    let odds = 2.0_f64.powf(0.6) * (1.0_f64 / 3.0).powf(0.4);
    for (method, expected) in [("linear", linear), ("log_linear", odds / (1.0 + odds))] {
        let policy = policy(json!({
            "question": "is it?", "labels": ["no", "yes"],
            "fusion": { "method": method, "weights": { "dinov3": 3.0, "siglip2": 2.0 } },
            "calibration": { "dinov3": 2.0 },
            "stages": [{ "models": ["dinov3", "siglip2"] }],
        }));
        let Decision::Verdict(answer) = decide(&policy, &votes, &Context::default()) else {
            panic!("{method}: the last stage is answered");
        };
        let found = answer.distribution.probabilities()[0];
        assert!((found - expected).abs() < 1e-6, "{method}: {found} instead of {expected}");
        let weights: Vec<f64> =
            answer.votes.iter().filter(|vote| vote.calibrated.is_some()).map(|vote| vote.weight).collect();
        assert!(
            (weights[0] - 0.6).abs() < 1e-12 && (weights[1] - 0.4).abs() < 1e-12,
            "{method}: {weights:?}"
        );
    }
}

/// Returns a policy for three labels, in which `dinov3` has the given scaling, if there is one.
fn scaled(scaling: Option<serde_json::Value>) -> Policy {
    policy(json!({
        "question": "which?", "labels": ["a", "b", "c"],
        "scaling": scaling.map_or(json!({}), |scaling| json!({ "dinov3": scaling })),
        "stages": [{ "models": ["dinov3"] }],
    }))
}

fn probabilities(policy: &Policy, vote: Vote) -> Vec<f64> {
    let Decision::Verdict(answer) = decide(policy, &[vote], &Context::default()) else {
        panic!("the last stage is answered");
    };
    answer.distribution.probabilities().to_vec()
}

#[test]
fn vector_scaling_changes_single_labels() {
    // The odds are 1:2:4: the last is doubled by its bias, and the first, 1/7, is squared by its scale.
    let odds = [0.0, 2.0_f32.ln(), 4.0_f32.ln()];
    let policy = scaled(Some(json!({ "scale": [2, 1, 1], "bias": [0, 0, 2.0_f64.ln()] })));
    let parts = [1.0 / 49.0, 2.0 / 7.0, 8.0 / 7.0];
    let sum: f64 = parts.iter().sum();
    // A constant that is added to all logits has no effect.
    for added in [0.0, 100.0, -3.5] {
        let found = probabilities(&policy, vote("dinov3", &odds.map(|logit| logit + added)));
        for (found, part) in found.iter().zip(parts) {
            assert!((found - part / sum).abs() < 1e-5, "{added} added: {found} instead of {}", part / sum);
        }
    }
    let neutral = scaled(Some(json!({ "scale": [1, 1, 1], "bias": [0, 0, 0] })));
    let [neutral, plain] =
        [neutral, scaled(None)].map(|policy| probabilities(&policy, vote("dinov3", &odds)));
    for (one, other) in neutral.iter().zip(&plain) {
        assert!((one - other).abs() < 1e-12, "{neutral:?} {plain:?}");
    }
    // The votes on labelled images are kept uncalibrated.
    assert_eq!(probabilities(&policy.one_by_one(), vote("dinov3", &odds)), plain);
}

#[test]
fn extreme_scales_and_biases_leave_a_distribution() {
    let (least, most) = (f64::MIN_POSITIVE, f64::MAX);
    for (scale, bias) in [
        ([most, most, most], [-most, -most, most]),
        ([most, least, most], [-most, most, 0.0]),
        ([least, least, least], [most, most, most]),
        ([least, most, 1.0], [-most, -most, -most]),
    ] {
        let policy = scaled(Some(json!({ "scale": scale, "bias": bias })));
        for logits in [[f32::MAX, f32::MIN, 0.0], [0.0, 0.0, 0.0], [f32::MIN, f32::MIN, f32::MAX]] {
            let found = probabilities(&policy, vote("dinov3", &logits));
            let sum: f64 = found.iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{scale:?} {bias:?} {logits:?}: {found:?}");
        }
    }
}

#[test]
fn calibration_for_other_labels_is_not_taken() {
    let two = VectorScaling::new(vec![1.0; 2], vec![0.0; 2]).unwrap();
    let policy = scaled(None).with_calibrations(|_| Calibration::Vector(two.clone()));
    assert_eq!(policy, scaled(None));
    for (scale, bias) in [
        (vec![], vec![]),
        (vec![1.0], vec![]),
        (vec![0.0], vec![0.0]),
        (vec![f64::INFINITY], vec![0.0]),
        (vec![1.0], vec![f64::NAN]),
    ] {
        assert_eq!(VectorScaling::new(scale, bias), None);
    }
}

#[test]
fn extreme_logits_and_weights_leave_a_distribution() {
    for method in ["linear", "log_linear"] {
        let policy = policy(json!({
            "question": "is it?", "labels": ["no", "yes"],
            "fusion": { "method": method, "weights": { "dinov3": f64::MAX, "siglip2": f64::MAX } },
            "calibration": { "dinov3": f64::MIN_POSITIVE, "siglip2": f64::MAX },
            "stages": [{ "models": ["dinov3", "siglip2"] }],
        }));
        let votes = [vote("dinov3", &[f32::MAX, f32::MIN]), vote("siglip2", &[f32::MIN, f32::MAX])];
        let Decision::Verdict(answer) = decide(&policy, &votes, &Context::default()) else {
            panic!("{method}: the last stage is answered");
        };
        let sum: f64 = answer.distribution.probabilities().iter().sum();
        assert!((sum - 1.0).abs() < 1e-12, "{method}: {:?}", answer.distribution);
    }
}

#[test]
fn logits_are_one_finite_number_for_each_label() {
    assert_eq!(Logits::new(&[1.0], 2), Err(LogitsError::Count { labels: 2, found: 1 }));
    assert_eq!(Logits::new(&[], 0), Err(LogitsError::Count { labels: 0, found: 0 }));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert!(
            matches!(Logits::new(&[0.0, value], 2), Err(LogitsError::NotFinite { index: 1, .. })),
            "{value}"
        );
    }
}

#[test]
fn a_reason_serialises_as_it_prints() {
    for reason in [StopReason::Accepted, StopReason::Exhausted] {
        assert_eq!(serde_json::to_value(reason).unwrap(), json!(reason.to_string()));
    }
}
