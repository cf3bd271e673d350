use std::collections::BTreeSet;

use concord_actors::policy::TaskSection;
use serde_json::json;

use super::*;

/// Two stages of a model each: `cheap` stops the cascade when it is nine tenths sure.
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

/// By which probability a model says yes, at what cost.
fn vote(yes: f64, milliseconds: u64) -> StoredVote {
    StoredVote {
        logits: vec![(1.0 - yes).ln() as f32, yes.ln() as f32],
        feature: None,
        microseconds: milliseconds * 1000,
    }
}

/// What both say of pictures of these labels, so many times over.
fn compared(pictures: &[(usize, f64, f64)], times: usize) -> Comparison {
    let votes: Vec<(usize, [StoredVote; 2])> = pictures
        .iter()
        .cycle()
        .take(pictures.len() * times)
        .map(|&(label, cheap, dear)| (label, [vote(cheap, 1), vote(dear, 10)]))
        .collect();
    let judged: Vec<Judged<'_>> =
        votes.iter().map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect() }).collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    compare(&policy(), &judged, &Resampling::new(&groups, 50, 1)).unwrap()
}

/// Sure and right; sure and right; in doubt and wrong, where the dear one is right; in doubt and right, where the dear
/// one is wrong but outvoted.
const PICTURES: [(usize, f64, f64); 4] = [(1, 0.95, 0.8), (0, 0.02, 0.1), (1, 0.4, 0.9), (0, 0.15, 0.6)];

fn named<'a>(comparison: &'a Comparison, name: &str) -> &'a Answerer {
    comparison.answerers.iter().find(|answerer| answerer.name == name).unwrap()
}

#[test]
fn every_way_to_answer_is_judged_with_what_it_costs() {
    let comparison = compared(&PICTURES, 10);
    assert_eq!(comparison.pictures, 40);
    for (name, kind, accuracy, milliseconds) in [
        ("cheap", Kind::Model, 0.75, 1.0),
        ("dear", Kind::Model, 0.75, 10.0),
        // The mean of both is right about each picture.
        ("all, linear", Kind::Fusion, 1.0, 11.0),
        ("all, log_linear", Kind::Fusion, 1.0, 11.0),
        // Half of the pictures cost both.
        ("cascade", Kind::Cascade, 1.0, 6.0),
        ("always the cheapest, cheap", Kind::Baseline, 0.75, 1.0),
        ("all, uniformly", Kind::Baseline, 1.0, 11.0),
        // Only the third picture needs the dear one.
        ("oracle", Kind::Baseline, 1.0, 3.5),
    ] {
        let answerer = named(&comparison, name);
        assert_eq!((answerer.kind, answerer.measured.accuracy.value), (kind, accuracy), "{name}");
        assert!(
            (answerer.milliseconds.value - milliseconds).abs() < 1e-9,
            "{name}: {:?}",
            answerer.milliseconds
        );
    }
    let random = named(&comparison, "random escalation");
    assert!(
        (random.milliseconds.value - 6.0).abs() < 0.5,
        "as dear as the cascade: {:?}",
        random.milliseconds
    );
    let shares: Vec<f64> = comparison.stages.iter().map(|share| share.value).collect();
    assert_eq!(shares, [0.5, 0.5]);
}

#[test]
fn doubts_are_judged_only_by_enough_errors() {
    let Foretold::TooFew { errors } = compared(&PICTURES, 49).first_stage_errors else {
        panic!("49 are too few")
    };
    assert_eq!(errors, 49);
    let Foretold::By(auroc) = compared(&PICTURES, 50).first_stage_errors else { panic!("50 are enough") };
    // The wrong answer is the one in the greatest doubt.
    assert_eq!(auroc.value, 1.0);
}

#[test]
fn no_picture_is_no_comparison() {
    assert!(compare(&policy(), &[], &Resampling::new(&[], 10, 0)).is_none());
}
