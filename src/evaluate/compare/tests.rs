use std::collections::BTreeSet;

use concord_policy::{CorrectnessEstimator, Dense, Learned, Network, TaskSection};
use serde_json::json;

use super::*;

/// Returns a policy of two stages with one model each: `cheap` stops the cascade at a confidence of 0.9.
fn policy() -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"],
        "stages": [
            { "models": ["cheap"], "accept": { "confidence": 0.9 } },
            { "models": ["dear"] },
        ],
    }))
    .unwrap();
    Policy::from_section(&section, &BTreeSet::from(["cheap", "dear"].map(str::to_owned))).unwrap()
}

/// A vote: the probability of "yes", and the cost.
fn vote(yes: f64, milliseconds: u64) -> StoredVote {
    StoredVote::of(vec![(1.0 - yes).ln() as f32, yes.ln() as f32], milliseconds)
}

/// The votes of both models on images of these labels, repeated.
fn compared(images: &[(usize, f64, f64)], times: usize) -> Comparison {
    let votes: Vec<(usize, [StoredVote; 2])> = images
        .iter()
        .cycle()
        .take(images.len() * times)
        .map(|&(label, cheap, dear)| (label, [vote(cheap, 1), vote(dear, 10)]))
        .collect();
    let judged: Vec<LabeledExample<'_>> = votes
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    compare(&policy(), &judged, &Bootstrap::new(&groups, 50, 1)).unwrap()
}

/// Confident and right; confident and right; uncertain and wrong, where the expensive model is right;
/// uncertain and right, where the expensive model is wrong but outvoted.
const IMAGES: [(usize, f64, f64); 4] = [(1, 0.95, 0.8), (0, 0.02, 0.1), (1, 0.4, 0.9), (0, 0.15, 0.6)];

fn named<'a>(comparison: &'a Comparison, name: &str) -> &'a Strategy {
    comparison.strategies.iter().find(|strategy| strategy.name == name).unwrap()
}

#[test]
fn every_strategy_is_evaluated_with_its_cost() {
    let comparison = compared(&IMAGES, 10);
    assert_eq!(comparison.images, 40);
    for (name, kind, accuracy, milliseconds) in [
        ("cheap", Kind::Model, 0.75, 1.0),
        ("dear", Kind::Model, 0.75, 10.0),
        // The mean of both is right about each image.
        ("all, linear", Kind::Fusion, 1.0, 11.0),
        ("all, log_linear", Kind::Fusion, 1.0, 11.0),
        // Half of the images cost both.
        ("cascade", Kind::Cascade, 1.0, 6.0),
        ("always the cheapest, cheap", Kind::Baseline, 0.75, 1.0),
        ("all, uniformly", Kind::Baseline, 1.0, 11.0),
        // Only the third image needs the expensive model.
        ("oracle", Kind::Baseline, 1.0, 3.5),
    ] {
        let strategy = named(&comparison, name);
        assert_eq!((strategy.kind, strategy.metrics.accuracy.value), (kind, accuracy), "{name}");
        assert!((strategy.cost.value - milliseconds).abs() < 1e-9, "{name}: {:?}", strategy.cost);
    }
    let random = named(&comparison, "random escalation");
    assert!((random.cost.value - 6.0).abs() < 0.5, "as dear as the cascade: {:?}", random.cost);
    let shares: Vec<f64> = comparison.stages.iter().map(|share| share.value).collect();
    assert_eq!(shares, [0.5, 0.5]);
}

#[test]
fn doubts_are_judged_only_by_enough_errors() {
    let ErrorDetection::TooFew { errors } = compared(&IMAGES, 49).first_stage.by_confidence else {
        panic!("49 are too few")
    };
    assert_eq!(errors, 49);
    let ErrorDetection::Auroc(auroc) = compared(&IMAGES, 50).first_stage.by_confidence else {
        panic!("50 are enough")
    };
    // The wrong answer is the least confident one.
    assert_eq!(auroc.value, 1.0);
}

#[test]
fn no_images_give_no_comparison() {
    assert!(compare(&policy(), &[], &Bootstrap::new(&[], 10, 0)).is_none());
}

/// A correctness estimator on `cheap`'s feature, which is 2 if it is right and -2 if it is wrong: the
/// correctness estimator's log-odds are the feature, and `dear` weighs the more the lower it is.
fn learned_policy() -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"], "learned": "a file", "fusion": { "method": "learned" },
        "stages": [
            { "models": ["cheap"], "accept": { "confidence": 0.5, "correctness": 0.8 } },
            { "models": ["dear"] },
        ],
    }))
    .unwrap();
    let names = ["cheap", "dear"].map(Arc::<str>::from);
    let network = |rows: &[&[f32]]| {
        let inputs = rows[0].len();
        let layer = Dense { weight: rows.concat(), bias: vec![0.0; rows.len()] };
        Network::new(vec![0.0; inputs], vec![1.0; inputs], vec![layer]).unwrap()
    };
    let mut row = [0.0; CorrectnessEstimator::NUMBERS + 1];
    row[CorrectnessEstimator::NUMBERS] = 1.0;
    let learned = Learned::new(Arc::clone(&names[0]))
        .with_estimator(&names[..1], network(&[&row]))
        .with_weights(names.to_vec(), network(&[&[0.0], &[-1.0], &[0.0], &[0.0]]));
    let policy = Policy::from_section(&section, &["cheap", "dear"].map(str::to_owned).into()).unwrap();
    policy.with_learned(Arc::new(learned))
}

#[test]
fn learned_networks_are_evaluated_as_configured() {
    // `cheap` always has the same confidence, and is wrong every second time; `dear` is right.
    let votes: Vec<(usize, [StoredVote; 2])> = (0..120)
        .map(|image| {
            let (label, feature, dear) = if image % 2 == 0 { (1, 2.0, 0.9) } else { (0, -2.0, 0.1) };
            let mut cheap = vote(0.8, 1);
            cheap.output.evidence.feature = Some(Arc::from([feature]));
            (label, [cheap, vote(dear, 10)])
        })
        .collect();
    let judged: Vec<LabeledExample<'_>> = votes
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    let comparison = compare(&learned_policy(), &judged, &Bootstrap::new(&groups, 50, 1)).unwrap();
    assert_eq!(named(&comparison, "cascade").metrics.accuracy.value, 1.0);
    assert_eq!(named(&comparison, "cascade").cost.value, 6.0);
    let nll = |name: &str| named(&comparison, name).metrics.nll.value;
    assert!(nll("all, learned") < nll("all, linear"), "{comparison:?}");
    let auroc = |error_detection: &ErrorDetection| match error_detection {
        ErrorDetection::Auroc(figure) => figure.value,
        ErrorDetection::TooFew { errors } | ErrorDetection::AllWrong { errors } => panic!("{errors} errors"),
    };
    assert_eq!(auroc(&comparison.first_stage.by_confidence), 0.5);
    assert_eq!(auroc(comparison.first_stage.by_estimator.as_ref().unwrap()), 1.0);
}

#[test]
fn a_first_stage_that_is_always_wrong_is_reported() {
    let votes: Vec<(usize, [StoredVote; 2])> = (0..60).map(|_| (0, [vote(0.8, 1), vote(0.9, 10)])).collect();
    let judged: Vec<LabeledExample<'_>> = votes
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    let bootstrap = Bootstrap::new(&groups, 20, 1);
    let summary = summarize_shift(&policy(), &judged, &bootstrap).unwrap();
    assert!(
        matches!(summary.first_stage.by_confidence, ErrorDetection::AllWrong { errors: 60 }),
        "{summary:?}"
    );
    let comparison = compare(&policy(), &judged, &bootstrap).unwrap();
    assert_eq!(named(&comparison, "cascade").metrics.accuracy.value, 0.0);
}

#[test]
fn a_summary_has_the_share_of_images_that_reach_each_stage() {
    let votes: Vec<(usize, [StoredVote; 2])> =
        IMAGES.map(|(label, cheap, dear)| (label, [vote(cheap, 1), vote(dear, 10)])).to_vec();
    let prices = [0.25, 4.0];
    let judged: Vec<LabeledExample<'_>> = votes
        .iter()
        .map(|(label, votes)| LabeledExample {
            label: *label,
            votes: votes.iter().collect(),
            prices: Some(&prices),
        })
        .collect();
    let summary = summarize_shift(&policy(), &judged, &Bootstrap::new(&[0, 1, 2, 3], 20, 1)).unwrap();
    let reached: Vec<f64> = summary.reached.iter().map(|share| share.value).collect();
    assert_eq!(reached, [1.0, 0.5]);
    let reported: Vec<(&str, f64)> =
        summary.strategies.iter().map(|strategy| (&*strategy.name, strategy.cost.value)).collect();
    // Half of the images cost both, in prices.
    let expected = [("cascade", 2.25), ("cheap", 0.25), ("dear", 4.0), ("all, uniformly", 4.25)];
    assert_eq!(reported, expected);
}
