//! Tests which verdicts and votes fit a policy.

use std::sync::Arc;

use concord_policy::{
    Context, Decision, Distribution, Evidence, Fallback, FallbackReason, LearnedPart, ModelOutput, Policy,
    Probability, Region, Shape, Source, StopReason, Verdict, VoteFailure, decide, verdict_fits,
};
use serde_json::{Value, json};

use super::{policy, vote};

/// Returns a cascade for two labels: dinov3, then siglip2, then cloud, which may be skipped.
fn section() -> Value {
    json!({
        "question": "is it?", "labels": ["no", "yes"], "learned": "f",
        "fusion": { "weights": { "dinov3": 0.75, "siglip2": 0.25, "cloud": 1e-6 } },
        "stages": [
            { "models": ["dinov3"], "accept": { "confidence": 0.9 } },
            { "models": ["siglip2"] },
            { "models": ["cloud"], "min_weight": 0.5 },
        ],
    })
}

/// A change of a verdict.
type Change = fn(&mut Verdict);

/// Returns the verdict of two stages, as the cache keeps it; the third has been skipped.
fn cached(policy: &Policy) -> Verdict {
    let votes = [vote("dinov3", &[0.0, 0.5]), vote("siglip2", &[0.0, 9.0])];
    match decide(policy, &votes, &Context::default()) {
        Decision::Verdict(verdict) => verdict.as_cached(),
        other => panic!("no verdict: {other:?}"),
    }
}

fn distribution(probabilities: &[f64]) -> Distribution {
    Distribution::new(probabilities.to_vec()).expect("the sum is 1")
}

#[test]
fn a_verdict_fits_the_policy_that_made_it() {
    let policy = policy(section());
    let verdict = cached(&policy);
    assert_eq!((verdict.stage, verdict.skipped.as_slice()), (1, &[2][..]), "{verdict:?}");
    assert!(verdict_fits(&verdict, &policy), "{verdict:?}");
}

#[test]
fn a_verdict_of_another_shape_does_not_fit() {
    let policy = policy(section());
    let cases: [(&str, Change); 26] = [
        ("three labels", |it| it.distribution = distribution(&[0.2, 0.3, 0.5])),
        ("one label", |it| it.distribution = distribution(&[1.0])),
        ("a vote of four labels", |it| it.votes[0].calibrated = Some(distribution(&[0.25; 4]))),
        ("three logits", |it| {
            it.votes[1].vote.output = Ok(ModelOutput::from(vec![0.0, 1.0, 2.0]));
        }),
        ("a failed vote", |it| it.votes[1].vote.output = Err(VoteFailure::new("out of memory"))),
        ("a vote that is not calibrated", |it| it.votes[1].calibrated = None),
        ("a fresh vote", |it| it.votes[0].vote.source = Source::Fresh),
        ("no votes", |it| it.votes.clear()),
        ("a vote too few", |it| drop(it.votes.pop())),
        ("a vote twice", |it| it.votes.push(it.votes[1].clone())),
        ("another order", |it| it.votes.swap(0, 1)),
        ("another model", |it| it.votes[1].vote.model = Arc::from("florence2")),
        ("a vote of another stage", |it| it.votes[1].stage = 0),
        ("other weights", |it| (it.votes[0].weight, it.votes[1].weight) = (0.5, 0.5)),
        ("a weight that is no number", |it| it.votes[0].weight = f64::NAN),
        ("a stage that there is not", |it| it.stage = 3),
        ("no stage that was skipped", |it| it.skipped.clear()),
        ("a stage that is always asked", |it| it.skipped = vec![0, 2]),
        ("a stage that there is not, skipped", |it| it.skipped = vec![2, usize::MAX]),
        ("a stage skipped twice", |it| it.skipped = vec![2, 2]),
        ("accepted where there is no rule", |it| it.reason = StopReason::Accepted),
        ("incomplete", |it| it.reason = StopReason::Incomplete),
        ("a burst", |it| it.burst = true),
        ("a correctness that no rule asks for", |it| it.correctness = Probability::new(0.5)),
        ("a fallback of a part that there is not", |it| {
            let (part, reason) = (LearnedPart::Weights, FallbackReason::NotFitted);
            it.fallbacks = vec![Fallback { part, stage: 1, reason }];
        }),
        ("a fallback of a stage that there is not", |it| {
            let (part, reason) = (LearnedPart::MinWeight, FallbackReason::NotFitted);
            it.fallbacks = vec![Fallback { part, stage: 3, reason }];
        }),
    ];
    for (case, change) in cases {
        let mut verdict = cached(&policy);
        change(&mut verdict);
        assert!(!verdict_fits(&verdict, &policy), "{case}: {verdict:?}");
    }
}

#[test]
fn a_verdict_by_another_policy_does_not_fit() {
    let verdict = cached(&policy(section()));
    for (case, pointer, value) in [
        ("other labels", "/labels", json!(["no", "yes", "perhaps"])),
        ("other weights", "/fusion/weights/dinov3", json!(0.5)),
        (
            "another order",
            "/stages",
            json!([
                { "models": ["siglip2"], "accept": { "confidence": 0.9 } },
                { "models": ["dinov3"] },
                { "models": ["cloud"], "min_weight": 0.5 },
            ]),
        ),
        ("more stages", "/stages/2/min_weight", Value::Null),
    ] {
        let mut section = section();
        *section.pointer_mut(pointer).expect("it is in the section") = value;
        assert!(!verdict_fits(&verdict, &policy(section)), "{case}");
    }
}

#[test]
fn a_vote_fits_with_a_finite_logit_for_each_label_and_plausible_evidence() {
    let output = |logits: &[f32], evidence: Evidence| ModelOutput { logits: logits.to_vec(), evidence };
    let feature = |numbers: &[f32]| Evidence { feature: Some(Arc::from(numbers)), ..Evidence::default() };
    let region = |shape: Shape| Evidence {
        regions: Arc::from([Region { label: "sign".to_owned(), shape }]),
        ..Evidence::default()
    };
    let uncertain = |uncertainty: f32| Evidence { uncertainty: Some(uncertainty), ..Evidence::default() };
    let logits = [0.5, -1.0];
    for (case, output, fits) in [
        ("two logits", output(&logits, Evidence::default()), true),
        ("one logit", output(&logits[..1], Evidence::default()), false),
        ("three logits", output(&[0.0; 3], Evidence::default()), false),
        ("no logits", output(&[], Evidence::default()), false),
        ("an infinite logit", output(&[0.0, f32::INFINITY], Evidence::default()), false),
        ("a feature", output(&logits, feature(&[1.0, 2.0, 3.0])), true),
        ("a longer feature", output(&logits, feature(&[0.0; 4])), false),
        ("a feature that is not finite", output(&logits, feature(&[0.0, f32::NAN, 0.0])), false),
        ("an uncertainty", output(&logits, uncertain(0.25)), true),
        ("an uncertainty that is not finite", output(&logits, uncertain(f32::NAN)), false),
        ("a box", output(&logits, region(Shape::Box([0.0, 1.0, 2.0, 3.0]))), true),
        ("a box that is not finite", output(&logits, region(Shape::Box([f32::INFINITY; 4]))), false),
        ("a quad that is not finite", output(&logits, region(Shape::Quad([f32::NAN; 8]))), false),
    ] {
        assert_eq!(output.fits(2, Some(3)), fits, "{case}: {output:?}");
    }
    assert!(output(&logits, feature(&[0.0; 4])).fits(2, None), "the length is not known");
}

#[test]
fn a_label_is_named_only_for_a_distribution_over_the_labels() {
    let policy = policy(section());
    assert_eq!(policy.label(&distribution(&[0.25, 0.75])), Some("yes"));
    assert_eq!(policy.label(&distribution(&[0.75, 0.25, 0.0])), None, "of three labels");
    assert_eq!(policy.label(&distribution(&[1.0])), None, "of one");
}
