use std::collections::BTreeSet;

use concord_actors::policy::TaskSection;
use serde_json::json;

use super::super::cross::{Fit, Labelled, fit};
use super::*;
use crate::evaluate::Goal as Wanted;
use crate::evaluate::StoredVote;

fn policy() -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"],
        "stages": [{ "models": ["cheap"], "accept": { "confidence": 0.99 } }, { "models": ["dear"] }],
    }))
    .unwrap();
    Policy::from_section(&section, &BTreeSet::from(["cheap", "dear"].map(str::to_owned))).unwrap()
}

/// A fraction that looks like chance, the same each time (Weyl's sequence).
fn chance(index: usize, of: u32) -> f64 {
    (index as f64 * f64::from(of).sqrt()).fract()
}

/// Two kinds of pictures, which the first number of the feature tells apart where `tells`: `cheap` knows the one kind and
/// guesses at the other, and `dear` the other way round; both always say that they are fairly sure.
fn data(count: usize, tells: bool) -> Vec<(usize, [StoredVote; 2])> {
    let vote = |says_yes: bool, feature: Option<Vec<f32>>, milliseconds: u64| {
        let logit = if says_yes { 2.0 } else { -2.0 };
        StoredVote { logits: vec![0.0, logit], feature, microseconds: 1000 * milliseconds }
    };
    (0..count)
        .map(|index| {
            let (is_yes, is_dark) = (chance(index, 2) < 0.5, chance(index, 3) < 0.4);
            let says = |knows: bool, of: u32| if knows { is_yes } else { chance(index, of) < 0.5 };
            let seen = if tells && is_dark { 1.0 } else { -1.0 };
            let feature = Some(vec![seen, chance(index, 7) as f32]);
            (usize::from(is_yes), [vote(says(!is_dark, 5), feature, 1), vote(says(is_dark, 11), None, 10)])
        })
        .collect()
}

fn fitted(data: &[(usize, [StoredVote; 2])], goal: Option<Wanted>) -> Fit {
    let pictures: Vec<Judged<'_>> = data
        .iter()
        .map(|(label, votes)| Judged { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..data.len()).collect();
    fit(&policy(), &policy(), Labelled { pictures: &pictures, groups: &groups }, goal).unwrap()
}

#[test]
fn weights_and_gates_are_learned_where_the_feature_tells_who_is_right() {
    let fit = fitted(&data(1000, true), Some(Wanted::MinAccuracy(0.9)));
    let learned = fit.learned.as_ref().unwrap();
    let weights = learned.weights.as_ref().unwrap();
    assert!(weights.is_gain() && weights.change.value < -0.1, "{:?}", weights.change);
    let gate = &learned.gates[0];
    assert!(gate.is_gain() && gate.by_gate > 0.8 && gate.by_confidence < 0.6, "{:?}", gate.change);
    assert_eq!(fit.method(), Some(FusionMethod::Learned));
    assert!(fit.gates_stage(0) && !fit.gates_stage(1));
    let gains = fit.gains().unwrap();
    assert!(gains.weighs("cheap") && gains.weighs("dear"));
    assert!(gains.has_gate(&[Arc::from("cheap")]));
    // Only what the first does not know is asked twice.
    assert!(fit.after.outcome.accuracy > 0.97, "{:?}", fit.after.outcome);
    assert!(fit.after.outcome.cost < 7.0, "{:?}", fit.after.outcome);
}

#[test]
fn what_the_feature_does_not_tell_is_not_learned() {
    let fit = fitted(&data(1000, false), Some(Wanted::MinAccuracy(0.5)));
    let learned = fit.learned.as_ref().unwrap();
    assert!(!learned.weights.as_ref().unwrap().is_gain());
    assert!(!learned.gates[0].is_gain(), "{:?}", learned.gates[0].change);
    assert!(fit.gains().is_none() && !fit.gates_stage(0));
    assert_ne!(fit.method(), Some(FusionMethod::Learned));
}

#[test]
fn gates_want_a_goal_and_networks_a_feature() {
    let mut data = data(400, true);
    let without_goal = fitted(&data, None);
    assert!(without_goal.learned.as_ref().unwrap().gates.is_empty());
    let unreachable = fitted(&data, Some(Wanted::MaxCost(0.5)));
    assert!(unreachable.confidences.is_none() && !unreachable.gates_stage(0));
    data[7].1[0].feature = None;
    assert!(fitted(&data, None).learned.is_none(), "one picture has none");
}
