//! Tests the decisions of learned networks, and the fallbacks where they cannot be evaluated.

use std::collections::BTreeSet;
use std::sync::Arc;

use concord_policy::{
    Context, CorrectnessEstimator, Decision, Dense, Fallback, FusionMethod, ImageFusion, Learned, Member,
    Network, Policy, PolicyError, Probability, TaskSection, Verdict, Vote, decide,
};
use serde_json::{Value, json};

use super::{failed, policy, vote};

pub(crate) fn names(models: &[&str]) -> Vec<Arc<str>> {
    models.iter().map(|model| Arc::from(*model)).collect()
}

/// Returns a network with one row of weights for each output, over all inputs, and without biases.
fn network(rows: &[&[f32]]) -> Network {
    let inputs = rows[0].len();
    let layer = Dense { weight: rows.concat(), bias: vec![0.0; rows.len()] };
    Network::new(vec![0.0; inputs], vec![1.0; inputs], vec![layer]).expect("the test's network fits together")
}

/// Returns learned networks on a feature of one number `x`: the weights are 1 for dinov3 and e^x for every
/// other model, all temperatures are 1, and each correctness estimator's log-odds are `x`.
pub(crate) fn learned(weighed: &[&str], estimators: &[&[&str]]) -> Learned {
    let mut learned = Learned::new(Arc::from("dinov3"));
    if !weighed.is_empty() {
        let mut rows: Vec<&[f32]> =
            weighed.iter().map(|model| if *model == "dinov3" { &[0.0][..] } else { &[1.0] }).collect();
        rows.resize(ImageFusion::outputs(weighed.len()), &[0.0]);
        learned = learned.with_weights(names(weighed), network(&rows));
    }
    let mut row = [0.0; CorrectnessEstimator::NUMBERS + 1];
    row[CorrectnessEstimator::NUMBERS] = 1.0;
    estimators
        .iter()
        .fold(learned, |learned, models| learned.with_estimator(&names(models), network(&[&row])))
}

/// Returns dinov3's vote with its feature.
fn backbone(logits: &[f32], feature: &[f32]) -> Vote {
    let mut vote = vote("dinov3", logits);
    vote.output.as_mut().expect("it has voted").evidence.feature = Some(Arc::from(feature));
    vote
}

/// Returns a cascade of dinov3, then siglip2, then cloud (optional, and paid for).
fn section() -> Value {
    json!({
        "question": "is it?", "labels": ["no", "yes"], "learned": "learned.safetensors",
        "fusion": { "method": "learned", "weights": { "dinov3": 0.6, "siglip2": 0.3, "cloud": 0.1 } },
        "stages": [
            { "models": ["dinov3"], "optional": ["dinov3"], "accept": { "confidence": 0.9, "correctness": 0.75 } },
            { "models": ["siglip2"], "accept": { "confidence": 0.99, "agreement": true } },
            { "models": ["cloud"], "optional": ["cloud"], "min_weight": 0.5 },
        ],
    })
}

fn whole() -> Learned {
    learned(&["dinov3", "siglip2", "cloud"], &[&["dinov3"]])
}

fn by(learned: Learned) -> Policy {
    policy(section()).with_learned(Arc::new(learned))
}

fn answer(policy: &Policy, votes: &[Vote]) -> Verdict {
    match decide(policy, votes, &Context::default()) {
        Decision::Verdict(answer) => answer,
        other => panic!("no answer: {other:?}"),
    }
}

/// Formats fallbacks as `correctness@0 backbone_failed, …`.
fn reported(fallbacks: &[Fallback]) -> String {
    let one =
        |Fallback { part, stage, reason }: &Fallback| format!("{}@{stage} {}", part.name(), reason.name());
    fallbacks.iter().map(one).collect::<Vec<_>>().join(", ")
}

const SURE: [f32; 2] = [0.0, 5.0];
const UNSURE: [f32; 2] = [0.0, 0.5];

#[test]
fn a_correctness_estimator_counts_instead_of_the_confidence_where_it_can_be_read() {
    let without_feature = vote("dinov3", &SURE);
    for (case, learned, first, accepted, correctness, fallbacks) in [
        (
            "unsure, but right says the correctness estimator",
            whole(),
            backbone(&UNSURE, &[2.0]),
            true,
            Some(0.88),
            "",
        ),
        (
            "sure, but wrong says the correctness estimator",
            whole(),
            backbone(&SURE, &[-2.0]),
            false,
            Some(0.12),
            "",
        ),
        (
            "no feature",
            whole(),
            without_feature,
            true,
            None,
            "weights@0 no_feature, correctness@0 no_feature",
        ),
        (
            "no correctness estimator",
            learned(&["dinov3"], &[]),
            backbone(&SURE, &[-2.0]),
            true,
            None,
            "correctness@0 not_fitted",
        ),
        (
            "another backbone",
            whole(),
            backbone(&SURE, &[-2.0, 0.0]),
            true,
            None,
            "weights@0 not_fitted, correctness@0 not_fitted",
        ),
    ] {
        match decide(&by(learned), &[first], &Context::default()) {
            Decision::Verdict(answer) => {
                let rounded =
                    answer.correctness.map(|correctness| (correctness.get() * 100.0).round() / 100.0);
                assert_eq!((accepted, rounded), (true, correctness), "{case}");
                assert_eq!(reported(&answer.fallbacks), fallbacks, "{case}");
            }
            Decision::Ask { stage } => assert_eq!((accepted, stage), (false, 1), "{case}"),
            Decision::Failed(failure) => panic!("{case}: {failure}"),
        }
    }
}

#[test]
fn each_image_has_its_own_weights() {
    let votes = |feature: &[f32]| [backbone(&UNSURE, feature), vote("siglip2", &SURE), failed("cloud")];
    let weights = |answer: &Verdict| -> Vec<f64> {
        answer.votes.iter().filter(|vote| vote.calibrated.is_some()).map(|vote| vote.weight).collect()
    };
    let nearly = |found: &[f64], expected: &[f64]| {
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6)
    };
    let mut section = section();
    section["stages"][0]["accept"]["correctness"] = json!(1.0);
    let policy = policy(section).with_learned(Arc::new(whole()));
    let even = answer(&policy, &votes(&[0.0]));
    assert!(nearly(&weights(&even), &[0.5, 0.5]), "{even:?}");
    let tilted = answer(&policy, &votes(&[3.0_f32.ln()]));
    assert!(nearly(&weights(&tilted), &[0.25, 0.75]), "{tilted:?}");
    // The odds of two labels multiply, each to the power of its model's weight: those of the logits are e^0.5
    // and e^5.
    let odds = (0.25_f64 * 0.5 + 0.75 * 5.0).exp();
    assert!((tilted.distribution.probabilities()[1] - odds / (1.0 + odds)).abs() < 1e-6, "{tilted:?}");

    // The configured weights, fused log-linearly.
    let fixed = [0.6 / 0.9, 0.3 / 0.9];
    let unfit = answer(&policy, &votes(&[0.0, 0.0]));
    assert!(nearly(&weights(&unfit), &fixed), "{unfit:?}");
    assert!(reported(&unfit.fallbacks).contains("weights@1 not_fitted"), "{unfit:?}");
    let by_hand = answer(&policy.with_weights(FusionMethod::LogLinear, Member::weight), &votes(&[0.0, 0.0]));
    assert_eq!(unfit.distribution, by_hand.distribution);
}

#[test]
fn each_image_has_its_own_temperatures() {
    // The feature is one number `x`: dinov3's log-probabilities are multiplied by e^x, and siglip2's stay.
    let network = network(&[&[0.0], &[0.0], &[1.0], &[0.0]]);
    let learned = Learned::new(Arc::from("dinov3")).with_weights(names(&["dinov3", "siglip2"]), network);
    let mut section = section();
    section["stages"] = json!([
        { "models": ["dinov3"], "accept": { "confidence": 0.9 } },
        { "models": ["siglip2"] },
    ]);
    let policy = policy(section).with_learned(Arc::new(learned));
    let probability = |log_odds: f64| 1.0 / (1.0 + (-log_odds).exp());
    for (x, log_odds) in [(0.0, 0.5), (2.0_f32.ln(), 1.0), (-2.0, 0.5 * (-2.0_f64).exp())] {
        let votes = [backbone(&UNSURE, &[x]), vote("siglip2", &SURE)];
        let answer = answer(&policy, &votes);
        let found = answer.votes[0].calibrated.as_ref().unwrap().probabilities()[1];
        assert!((found - probability(log_odds)).abs() < 1e-6, "{x}: the vote as it counts: {answer:?}");
        let fused = f64::midpoint(log_odds, 5.0);
        assert!(
            (answer.distribution.probabilities()[1] - probability(fused)).abs() < 1e-6,
            "{x}: {answer:?}"
        );
    }
    // The image's temperature also decides whether the first model is confident enough by itself.
    let sure = [backbone(&[0.0, 2.0], &[1.0])];
    assert_eq!(answer(&policy, &sure).stage, 0);
    let doubted = [backbone(&SURE, &[-2.0])];
    assert_eq!(decide(&policy, &doubted, &Context::default()), Decision::Ask { stage: 1 });
}

#[test]
fn what_counts_in_the_place_of_a_learned_part_is_told() {
    let policy = by(whole());
    for (case, votes, expected, is_lasting) in [
        (
            "the backbone failed",
            vec![failed("dinov3"), vote("siglip2", &UNSURE), vote("cloud", &SURE)],
            // Cloud has 0.1 of the 0.4 that siglip2 and cloud have together, so its stage is skipped.
            "weights@1 backbone_failed, min_weight@2 backbone_failed",
            false,
        ),
        (
            "the vote has no feature, which another computation may have",
            vec![vote("dinov3", &UNSURE), vote("siglip2", &UNSURE)],
            "weights@0 no_feature, correctness@0 no_feature, weights@1 no_feature, min_weight@2 no_feature",
            false,
        ),
        ("all is read", vec![backbone(&UNSURE, &[-1.0]), vote("siglip2", &UNSURE)], "", true),
        (
            "networks of other models, as they will be the next time",
            vec![backbone(&UNSURE, &[-1.0, 0.0]), vote("siglip2", &UNSURE)],
            "weights@0 not_fitted, correctness@0 not_fitted, weights@1 not_fitted, min_weight@2 not_fitted",
            true,
        ),
    ] {
        let answer = answer(&policy, &votes);
        assert_eq!(reported(&answer.fallbacks), expected, "{case}");
        assert_eq!((&answer.skipped[..], answer.is_lasting()), (&[2][..], is_lasting), "{case}");
    }
    let late = policy_of_late_backbone();
    let answer =
        answer(&late, &[vote("siglip2", &UNSURE), vote("cloud", &UNSURE), backbone(&UNSURE, &[0.0])]);
    assert_eq!(reported(&answer.fallbacks), "weights@0 backbone_not_asked");
    assert!(answer.is_lasting(), "it is so for every image");
}

#[test]
fn before_the_backbone_one_vote_counts_as_it_is_and_nothing_is_told() {
    let mut section = section();
    section["stages"] =
        json!([{ "models": ["siglip2"], "accept": { "confidence": 0.9 } }, { "models": ["dinov3"] }]);
    let policy = policy(section).with_learned(Arc::new(whole()));
    let alone = answer(&policy, &[vote("siglip2", &SURE)]);
    assert_eq!((alone.stage, reported(&alone.fallbacks).as_str()), (0, ""));
    let both = answer(&policy, &[vote("siglip2", &UNSURE), backbone(&UNSURE, &[0.0])]);
    assert_eq!((both.stage, reported(&both.fallbacks).as_str()), (1, ""));
}

fn policy_of_late_backbone() -> Policy {
    let mut section = section();
    section["stages"] = json!([{ "models": ["siglip2", "cloud"] }, { "models": ["dinov3"] }]);
    policy(section).with_learned(Arc::new(whole()))
}

#[test]
fn a_stage_is_left_out_where_its_models_would_count_for_too_little() {
    let policy = by(whole());
    let first_two = |feature| vec![backbone(&UNSURE, &[feature]), vote("siglip2", &UNSURE)];
    // With weights 1 : e^x : e^x, cloud's share never exceeds a half; with siglip2's weight equal to
    // dinov3's, it does from x = ln 2 on.
    let rows: [&[f32]; 6] = [&[0.0], &[0.0], &[1.0], &[0.0], &[0.0], &[0.0]];
    let policy = policy.with_learned(Arc::new(
        learned(&[], &[&["dinov3"]]).with_weights(names(&["dinov3", "siglip2", "cloud"]), network(&rows)),
    ));
    for (feature, is_asked) in [(-1.0, false), (0.69, false), (0.70, true)] {
        let decision = decide(&policy, &first_two(feature), &Context::default());
        assert_eq!(decision == Decision::Ask { stage: 2 }, is_asked, "{feature}: {decision:?}");
        let mut votes = first_two(feature);
        votes.push(vote("cloud", &SURE));
        let answer = answer(&policy, &votes);
        assert_eq!((answer.stage, answer.skipped.is_empty()), (if is_asked { 2 } else { 1 }, is_asked));
        assert_eq!(
            answer.votes.len(),
            if is_asked { 3 } else { 2 },
            "a vote that was not asked for does not count"
        );
    }
    // Without a verdict so far, no stage may be skipped.
    let mut alone = section();
    alone["stages"][1]["optional"] = json!(["siglip2"]);
    alone["stages"][2]["min_weight"] = json!(0.99);
    let alone = super::policy(alone).with_learned(Arc::new(whole()));
    let votes = [failed("dinov3"), failed("siglip2")];
    assert_eq!(decide(&alone, &votes, &Context::default()), Decision::Ask { stage: 2 });
}

#[test]
fn a_busy_queue_is_no_way_around_the_least_weight() {
    let mut section = section();
    section["stages"][2]["burst_queue_depth"] = json!(10);
    section["stages"][2]["min_weight"] = json!(0.4);
    let policy = policy(section).with_learned(Arc::new(whole()));
    let busy = |model: &str| Context { queue_depths: [(Arc::from(model), 99)].into() };
    for (case, votes, model, expected) in [
        ("nothing is known of the image", vec![], "dinov3", 0),
        ("cloud would count for 0.27", vec![backbone(&UNSURE, &[-1.0])], "siglip2", 1),
        ("cloud would count for 0.5", vec![backbone(&UNSURE, &[0.0])], "siglip2", 2),
        ("the networks are of another backbone", vec![backbone(&UNSURE, &[0.0, 0.0])], "siglip2", 1),
    ] {
        assert_eq!(decide(&policy, &votes, &busy(model)), Decision::Ask { stage: expected }, "{case}");
    }
    let answer = answer(&policy, &[backbone(&UNSURE, &[0.0]), vote("cloud", &SURE)]);
    assert!(answer.burst && answer.stage == 2, "{answer:?}");
}

#[test]
fn a_policy_without_some_of_its_models_reads_weights_for_the_others() {
    let policy =
        by(learned(&["dinov3", "siglip2", "cloud"], &[&["dinov3"], &["dinov3", "siglip2", "cloud"]]));
    let less = policy.without(|model| model == "cloud").unwrap();
    let both = answer(&less, &[backbone(&UNSURE, &[0.0]), vote("siglip2", &UNSURE)]);
    assert_eq!((reported(&both.fallbacks).as_str(), both.votes.len()), ("", 2));
    let first = less.as_far_as(0).unwrap();
    assert_eq!(answer(&first, &[backbone(&UNSURE, &[0.0])]).correctness, Probability::new(0.5));
}

#[test]
fn policies_of_other_networks_are_not_equal() {
    assert_eq!(by(whole()), by(whole()));
    assert_ne!(by(whole()), by(learned(&["dinov3", "siglip2", "cloud"], &[])));
    assert_ne!(by(whole()), policy(section()));
}

fn faults(edit: impl Fn(&mut Value), learned: &Learned) -> Vec<String> {
    let mut section = section();
    edit(&mut section);
    let section: TaskSection = serde_json::from_value(section).expect("the section has the right types");
    let local = BTreeSet::from(["dinov3", "siglip2", "florence2"].map(str::to_owned));
    learned.check(&section, &local).iter().map(PolicyError::to_string).collect()
}

#[test]
fn networks_that_do_not_fit_the_stages_are_faults_where_they_are_wanted() {
    assert_eq!(faults(|_| (), &whole()), Vec::<String>::new());
    let lacking = learned(&["dinov3"], &[&["siglip2"]]);
    let expected = [
        "fusion.method: there are no learned weights for siglip2: fit again (`concord fit`)",
        "stages[0].accept.correctness: there is no learned correctness estimator for answers of dinov3: fit again (`concord fit`)",
        "stages[2].min_weight: there are no learned weights for siglip2, cloud: fit again (`concord fit`)",
    ];
    assert_eq!(faults(|_| (), &lacking), expected);
    // A model behind a server may have been off when the networks were fitted.
    let local = learned(&["dinov3", "siglip2"], &[&["dinov3"], &["dinov3", "siglip2"]]);
    let found = faults(
        |section| section["stages"][2] = json!({ "models": ["cloud"], "accept": { "correctness": 0.5 } }),
        &local,
    );
    assert_eq!(found, Vec::<String>::new());
    let found = faults(|section| section["stages"][0]["models"] = json!(["florence2"]), &whole());
    assert!(
        found[0].starts_with("learned: reads the feature of \"dinov3\", which no stage asks"),
        "{found:?}"
    );
    let late = |section: &mut Value| {
        section["stages"] = json!([
            { "models": ["siglip2"], "accept": { "correctness": 0.5 } },
            { "models": ["cloud"], "min_weight": 0.5 },
            { "models": ["dinov3"] },
        ]);
    };
    let found = faults(late, &whole());
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found.iter().all(|fault| fault.contains("which is asked later: must be asked before")),
        "{found:?}"
    );
}
