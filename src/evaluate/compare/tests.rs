use std::collections::BTreeSet;

use concord_policy::{Dense, GATE_NUMBERS, Learned, Network, TaskSection};
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
    let judged: Vec<Judged<'_>> = votes
        .iter()
        .map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
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
        assert!((answerer.cost.value - milliseconds).abs() < 1e-9, "{name}: {:?}", answerer.cost);
    }
    let random = named(&comparison, "random escalation");
    assert!((random.cost.value - 6.0).abs() < 0.5, "as dear as the cascade: {:?}", random.cost);
    let shares: Vec<f64> = comparison.stages.iter().map(|share| share.value).collect();
    assert_eq!(shares, [0.5, 0.5]);
}

#[test]
fn doubts_are_judged_only_by_enough_errors() {
    let Foretold::TooFew { errors } = compared(&PICTURES, 49).first_stage.by_confidence else {
        panic!("49 are too few")
    };
    assert_eq!(errors, 49);
    let Foretold::By(auroc) = compared(&PICTURES, 50).first_stage.by_confidence else {
        panic!("50 are enough")
    };
    // The wrong answer is the one in the greatest doubt.
    assert_eq!(auroc.value, 1.0);
}

#[test]
fn no_picture_is_no_comparison() {
    assert!(compare(&policy(), &[], &Resampling::new(&[], 10, 0)).is_none());
}

/// Of `cheap`'s feature, which is 2 where it is right and -2 where it is wrong: the gate's log-odds are the feature, and `dear`
/// weighs the more the lower it is.
fn learned_policy() -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"], "learned": "a file", "fusion": { "method": "learned" },
        "stages": [
            { "models": ["cheap"], "accept": { "confidence": 0.5, "gate": 0.8 } },
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
    let mut row = [0.0; GATE_NUMBERS + 1];
    row[GATE_NUMBERS] = 1.0;
    let learned = Learned::of(Arc::clone(&names[0]))
        .with_gate(&names[..1], network(&[&row]))
        .with_weights(names.to_vec(), network(&[&[0.0], &[-1.0], &[0.0], &[0.0]]));
    let policy = Policy::from_section(&section, &["cheap", "dear"].map(str::to_owned).into()).unwrap();
    policy.with_learned(Arc::new(learned))
}

#[test]
fn what_was_learned_is_judged_as_it_is_configured() {
    // `cheap` is always as sure, and wrong each second time; `dear` is right.
    let votes: Vec<(usize, [StoredVote; 2])> = (0..120)
        .map(|picture| {
            let (label, feature, dear) = if picture % 2 == 0 { (1, 2.0, 0.9) } else { (0, -2.0, 0.1) };
            (label, [StoredVote { feature: Some(vec![feature]), ..vote(0.8, 1) }, vote(dear, 10)])
        })
        .collect();
    let judged: Vec<Judged<'_>> = votes
        .iter()
        .map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    let comparison = compare(&learned_policy(), &judged, &Resampling::new(&groups, 50, 1)).unwrap();
    assert_eq!(named(&comparison, "cascade").measured.accuracy.value, 1.0);
    assert_eq!(named(&comparison, "cascade").cost.value, 6.0);
    let nll = |name: &str| named(&comparison, name).measured.nll.value;
    assert!(nll("all, learned") < nll("all, linear"), "{comparison:?}");
    let auroc = |foretold: &Foretold| match foretold {
        Foretold::By(figure) => figure.value,
        Foretold::TooFew { errors } | Foretold::NoneRight { errors } => panic!("{errors} errors"),
    };
    assert_eq!(auroc(&comparison.first_stage.by_confidence), 0.5);
    assert_eq!(auroc(comparison.first_stage.by_gate.as_ref().unwrap()), 1.0);
}

#[test]
fn where_nothing_is_right_everything_else_is_told_all_the_same() {
    let votes: Vec<(usize, [StoredVote; 2])> = (0..60).map(|_| (0, [vote(0.8, 1), vote(0.9, 10)])).collect();
    let judged: Vec<Judged<'_>> = votes
        .iter()
        .map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..judged.len()).collect();
    let resampling = Resampling::new(&groups, 20, 1);
    let brief = compare_in_brief(&policy(), &judged, &resampling).unwrap();
    assert!(matches!(brief.first_stage.by_confidence, Foretold::NoneRight { errors: 60 }), "{brief:?}");
    let comparison = compare(&policy(), &judged, &resampling).unwrap();
    assert_eq!(named(&comparison, "cascade").measured.accuracy.value, 0.0);
}

#[test]
fn in_brief_it_is_told_how_many_pictures_get_to_each_stage() {
    let votes: Vec<(usize, [StoredVote; 2])> =
        PICTURES.map(|(label, cheap, dear)| (label, [vote(cheap, 1), vote(dear, 10)])).to_vec();
    let prices = [0.25, 4.0];
    let judged: Vec<Judged<'_>> = votes
        .iter()
        .map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect(), prices: Some(&prices) })
        .collect();
    let brief = compare_in_brief(&policy(), &judged, &Resampling::new(&[0, 1, 2, 3], 20, 1)).unwrap();
    let reached: Vec<f64> = brief.reached.iter().map(|share| share.value).collect();
    assert_eq!(reached, [1.0, 0.5]);
    let told: Vec<(&str, f64)> =
        brief.answerers.iter().map(|answerer| (&*answerer.name, answerer.cost.value)).collect();
    // Half of the pictures cost both, in prices.
    let expected = [("cascade", 2.25), ("cheap", 0.25), ("dear", 4.0), ("all, uniformly", 4.25)];
    assert_eq!(told, expected);
}
