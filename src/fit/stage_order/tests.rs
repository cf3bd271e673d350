use std::collections::BTreeSet;

use concord_policy::TaskSection;
use serde_json::{Value, json};

use super::super::cross_fit::{Fit, FitData, FitOptions, fit};
use super::*;
use crate::evaluate::StoredVote;

const COUNT: usize = 1000;

fn policy(stages: &Value) -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"], "learned": "a.file", "stages": stages,
    }))
    .unwrap();
    Policy::from_section(&section, &BTreeSet::from(["a", "b", "c", "d", "e"].map(str::to_owned))).unwrap()
}

/// Returns a pseudorandom fraction that is the same in every run (Weyl's sequence).
fn chance(index: usize, of: u32) -> f64 {
    (index as f64 * f64::from(of).sqrt()).fract()
}

/// A model with an accuracy and a cost in milliseconds.
#[derive(Clone, Copy)]
struct Model {
    right: f64,
    milliseconds: u64,
}

/// Fits a policy of `a` and `b`, whose errors are independent.
fn fitted(stages: &Value, [a, b]: [Model; 2], objective: Objective) -> Fit {
    let vote = |index: usize, label: usize, model: Model, of: u32| {
        let says_yes = (chance(index, of) < model.right) == (label == 1);
        let sure = 2.0 + chance(index, 7) as f32;
        let logits = vec![0.0, if says_yes { sure } else { -sure }];
        StoredVote::of(logits, model.milliseconds)
    };
    let data: Vec<(usize, [StoredVote; 2])> = (0..COUNT)
        .map(|index| (index, usize::from(chance(index, 2) < 0.5)))
        .map(|(index, label)| (label, [vote(index, label, a, 3), vote(index, label, b, 5)]))
        .collect();
    let images: Vec<LabeledExample<'_>> = data
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..COUNT).collect();
    let policy = policy(stages);
    let options = FitOptions { objective: Some(objective), ..FitOptions::default() };
    fit(&policy, &policy, FitData { images: &images, groups: &groups }, options).unwrap()
}

fn a_then_b() -> Value {
    json!([{ "models": ["a"], "accept": { "confidence": 0.99 } }, { "models": ["b"] }])
}

const DEAR_AND_BAD: Model = Model { right: 0.7, milliseconds: 10 };
const CHEAP_AND_GOOD: Model = Model { right: 0.95, milliseconds: 1 };

#[test]
fn a_cheap_accurate_model_is_moved_before_an_expensive_inaccurate_one() {
    let fit = fitted(&a_then_b(), [DEAR_AND_BAD, CHEAP_AND_GOOD], Objective::MinAccuracy(0.9));
    assert_eq!(fit.orders.gain(), Some(&[1, 0][..]), "{:?}", fit.orders);
    let StageOrders::Best(part) = &fit.orders else { panic!("{:?}", fit.orders) };
    assert!(part.now_reaches && part.cost.high < -7.0, "{part:?}");
    // As the last stage it had no rule of its own.
    let confidences = fit.confidences.as_ref().unwrap();
    assert!(matches!(confidences[..], [Some(confidence)] if confidence < 0.99), "{confidences:?}");
    assert!(fit.after.outcome.cost < 2.0 && fit.before.outcome.cost > 9.9, "{:?}", fit.after.outcome);
    assert!(fit.after.outcome.accuracy > 0.9, "{:?}", fit.after.outcome);
}

#[test]
fn where_only_another_order_keeps_to_a_cost_it_is_used() {
    let fit = fitted(&a_then_b(), [DEAR_AND_BAD, CHEAP_AND_GOOD], Objective::MaxCost(5.0));
    assert_eq!(fit.orders.gain(), Some(&[1, 0][..]), "{:?}", fit.orders);
    assert!(matches!(&fit.orders, StageOrders::Best(part) if !part.now_reaches), "{:?}", fit.orders);
    assert!(fit.after.outcome.cost < 5.5, "{:?}", fit.after.outcome);
}

#[test]
fn an_order_that_is_not_significantly_better_is_not_written() {
    let equal = Model { right: 0.8, milliseconds: 5 };
    for (models, objective) in [
        ([equal, equal], Objective::MinAccuracy(0.75)),
        ([equal, equal], Objective::MaxCost(7.0)),
        // The configured order is the better one.
        ([Model { right: 0.9, ..CHEAP_AND_GOOD }, DEAR_AND_BAD], Objective::MinAccuracy(0.8)),
    ] {
        let fit = fitted(&a_then_b(), models, objective);
        assert_eq!(fit.orders.gain(), None, "{objective:?}: {:?}", fit.orders);
        let StageOrders::Best(part) = &fit.orders else { panic!("{:?}", fit.orders) };
        assert_eq!(part.order, [1, 0], "what it would have come to is reported");
        assert_eq!((fit.place_of(0), fit.place_of(1)), (0, 1));
    }
}

#[test]
fn a_goal_that_no_order_reaches_changes_none() {
    let fit = fitted(&a_then_b(), [DEAR_AND_BAD, CHEAP_AND_GOOD], Objective::MaxCost(0.5));
    assert!(matches!(fit.orders, StageOrders::Unreached), "{:?}", fit.orders);
    assert_eq!(fit.confidences, None);
}

#[test]
fn stages_that_mean_something_where_they_are_stay_and_none_moves_past_them() {
    let plain = |model: &str| json!({ "models": [model], "accept": { "confidence": 0.9 } });
    let with = |model: &str, key: &str, value: Value| json!({ "models": [model], "optional": [model], "accept": { "confidence": 0.9 }, key: value });
    let estimated =
        |model: &str| json!({ "models": [model], "accept": { "confidence": 0.9, "correctness": 0.9 } });
    for (stages, off, orders) in [
        (json!([plain("a"), plain("b")]), "", vec![vec![1, 0]]),
        (json!([plain("a")]), "", vec![]),
        (
            json!([plain("a"), plain("b"), with("c", "burst_queue_depth", json!(5)), plain("d")]),
            "",
            vec![vec![1, 0, 2, 3]],
        ),
        (json!([plain("a"), with("b", "min_weight", json!(0.5)), plain("c")]), "", vec![]),
        (json!([plain("a"), estimated("b"), plain("c"), plain("d")]), "", vec![vec![0, 1, 3, 2]]),
        (json!([plain("a"), plain("b"), plain("c")]), "b", vec![]),
        (json!([plain("a"), plain("b"), { "models": ["c", "d"] }]), "d", vec![vec![1, 0, 2]]),
        (json!([plain("a"), plain("b"), plain("c")]), "c", vec![vec![1, 0]]),
    ] {
        let whole = policy(&stages);
        let policy = whole.without(|model| model == off).unwrap();
        assert_eq!(other_orders(&neighbourhoods(&policy, &whole)), orders, "{stages} without {off:?}");
    }
    let policy = policy(&json!([plain("a"), plain("b"), plain("c"), plain("d")]));
    for (model, order, is_later) in [
        ("b", [0, 1, 3, 2], false),
        ("b", [1, 0, 2, 3], false),
        ("b", [0, 2, 1, 3], true),
        ("a", [1, 0, 2, 3], true),
        ("d", [3, 0, 1, 2], false),
    ] {
        assert_eq!(asks_later(&policy, &order, model), is_later, "{model} in {order:?}");
    }
}

#[test]
fn four_stages_have_23_other_orders_and_of_five_none_is_tried() {
    assert_eq!(other_orders(&[Some(0); 4]).len(), 23);
    assert_eq!(movable(&[Some(0), Some(0), None, Some(1), Some(2), Some(2)]), 4);
    let stages: Vec<Value> = ["a", "b", "c", "d", "e"].map(|model| json!({ "models": [model] })).into();
    let policy = policy(&json!(stages));
    assert!(movable(&neighbourhoods(&policy, &policy)) > MOVABLE_MAX);
}
