use std::collections::BTreeSet;

use concord_policy::TaskSection;
use serde_json::json;

use super::*;
use crate::evaluate::StoredVote;

/// Returns a policy of two stages with one model each.
fn policy(temperature: f64) -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"], "calibration": { "cheap": temperature },
        "stages": [
            { "models": ["cheap"], "accept": { "confidence": 0.999 } },
            { "models": ["dear"] },
        ],
    }))
    .unwrap();
    Policy::from_section(&section, &BTreeSet::from(["cheap", "dear"].map(str::to_owned))).unwrap()
}

/// Returns a pseudorandom fraction that is the same in every run (Weyl's sequence).
fn chance(index: usize, of: u32) -> f64 {
    (index as f64 * f64::from(of).sqrt()).fract()
}

/// Returns votes of `cheap`, which is calibrated, and of `dear`, which is nearly always right at ten times
/// the cost.
fn data(count: usize) -> Vec<(usize, [StoredVote; 2])> {
    let vote = |logit: f64, milliseconds: u64| StoredVote::of(vec![0.0, logit as f32], milliseconds);
    (0..count)
        .map(|index| {
            let logit = 8.0 * chance(index, 2) - 4.0;
            let label = usize::from(chance(index, 3) < 1.0 / (1.0 + (-logit).exp()));
            let sign = if label == 1 { 1.0 } else { -1.0 };
            let wrong = if chance(index, 5) < 0.02 { -1.0 } else { 1.0 };
            (label, [vote(logit, 1), vote(4.0 * sign * wrong, 10)])
        })
        .collect()
}

fn fitted(policy: &Policy, count: usize, objective: Option<Objective>) -> Option<Fit> {
    let data = data(count);
    let images: Vec<LabeledExample<'_>> = data
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..count).collect();
    fit(
        policy,
        policy,
        FitData { images: &images, groups: &groups },
        FitOptions { objective, ..FitOptions::default() },
    )
}

#[test]
fn a_wrong_temperature_is_mended_and_a_right_one_left_alone() {
    let wrong = fitted(&policy(0.2), 1500, None).unwrap();
    let part = &wrong.calibrations[0].temperature.part;
    let temperature = part.fitted.temperature().unwrap().get();
    assert!(part.is_gain() && (temperature - 1.0).abs() < 0.15, "{part:?}");
    assert!(wrong.after.metrics.nll.value < wrong.before.metrics.nll.value);
    let right = fitted(&policy(1.0), 1500, None).unwrap();
    assert_eq!(right.calibrations[0].gained(), None, "{:?}", right.calibrations[0]);
}

#[test]
fn the_better_model_gets_the_weight() {
    let fit = fitted(&policy(1.0), 1500, None).unwrap();
    let fusion = fit.fusion().unwrap();
    assert!(fusion.weights[1] > 0.6, "{fusion:?}");
    assert!((fusion.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn thresholds_keep_to_a_cost() {
    let fit = fitted(&policy(1.0), 1500, Some(Objective::MaxCost(6.0))).unwrap();
    assert_eq!(fit.confidences.as_ref().unwrap().len(), 1);
    // They were fitted on four fifths of the images, and are evaluated on the rest.
    assert!(fit.after.outcome.cost < 6.6, "{:?}", fit.after.outcome);
    assert!(fit.before.outcome.cost > 10.9, "nothing was sure enough: {:?}", fit.before.outcome);
    assert!(fit.after.outcome.accuracy > 0.9, "{:?}", fit.after.outcome);
    let none = fitted(&policy(1.0), 1500, Some(Objective::MaxCost(0.5))).unwrap();
    assert_eq!(none.confidences, None, "half a millisecond is less than the first model takes");
}

#[test]
fn a_stage_that_ends_no_cascade_may_stay_so() {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"], "stages": [{ "models": ["cheap"] }, { "models": ["dear"] }],
    }))
    .unwrap();
    let never =
        Policy::from_section(&section, &BTreeSet::from(["cheap", "dear"].map(str::to_owned))).unwrap();
    let fit = fitted(&never, 1500, Some(Objective::MaxCost(1000.0))).unwrap();
    let [confidence] = fit.confidences.unwrap()[..] else { panic!("one stage but the last") };
    assert!(confidence.is_none_or(|confidence| confidence <= 1.0), "{confidence:?}");
}

#[test]
fn thresholds_are_not_fitted_to_a_few_errors() {
    // The first stage makes about twenty errors on a hundred images.
    let fit = fitted(&policy(1.0), 100, Some(Objective::MaxCost(6.0))).unwrap();
    assert!((1..50).contains(&fit.first_stage_errors), "{}", fit.first_stage_errors);
    assert_eq!(fit.confidences, None);
}

#[test]
fn too_few_groups_are_not_fitted_on() {
    assert!(fitted(&policy(1.0), FOLDS - 1, None).is_none());
}
