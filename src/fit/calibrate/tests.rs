use std::collections::BTreeSet;

use concord_policy::{FusionMethod, TaskSection};
use serde_json::{Value, json};

use super::super::cross_fit::{Fit, FitData, FitOptions, fit};
use super::*;
use crate::evaluate::StoredVote;

/// Returns a policy of two stages with one model each, and three labels.
fn policy(more: &Value) -> Policy {
    let mut section = json!({
        "question": "?", "labels": ["a", "b", "c"],
        "stages": [{ "models": ["fond"], "accept": { "confidence": 0.999 } }, { "models": ["plain"] }],
    });
    for (key, value) in more.as_object().unwrap() {
        section[key] = value.clone();
    }
    let section: TaskSection = serde_json::from_value(section).unwrap();
    Policy::from_section(&section, &BTreeSet::from(["fond", "plain"].map(str::to_owned))).unwrap()
}

/// Returns a pseudorandom fraction that is the same in every run (Weyl's sequence).
fn chance(index: usize, of: u32) -> f64 {
    (index as f64 * f64::from(of).sqrt()).fract()
}

/// Returns votes of two models that are calibrated, except that `fond` adds `excess` to the logit of the last
/// label.
fn data(count: usize, excess: f32) -> Vec<(usize, [StoredVote; 2])> {
    let vote = |logits: [f64; 3], excess: f32| {
        let [a, b, c] = logits.map(|logit| logit as f32);
        StoredVote::of(vec![a, b, c + excess], 1)
    };
    (0..count)
        .map(|index| {
            let logits = [2, 3, 5].map(|of| 6.0 * chance(index, of));
            let odds = logits.map(f64::exp);
            let drawn = chance(index, 7) * odds.iter().sum::<f64>();
            let label = if drawn < odds[0] { 0 } else { 1 + usize::from(drawn >= odds[0] + odds[1]) };
            (label, [vote(logits, excess), vote(logits, 0.0)])
        })
        .collect()
}

fn fitted(policy: &Policy, data: &[(usize, [StoredVote; 2])]) -> Fit {
    let images: Vec<LabeledExample<'_>> = data
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..data.len()).collect();
    fit(policy, policy, FitData { images: &images, groups: &groups }, FitOptions::default()).unwrap()
}

#[test]
fn a_model_that_is_too_fond_of_a_label_gets_scales_and_biases_and_another_is_left_alone() {
    let fit = fitted(&policy(&json!({})), &data(2000, 2.0));
    let [fond, plain] = &fit.calibrations[..] else { panic!("two members") };
    let vector = &fond.vector.as_ref().unwrap().part;
    assert!(vector.is_gain() && vector.change.value < -0.05, "{:?}", vector.change);
    let Some(Calibration::Vector(scaling)) = fond.gained() else { panic!("{:?}", fond.gained()) };
    let bias = scaling.bias();
    assert!((bias[0] - bias[2] - 2.0).abs() < 0.5 && (bias[1] - bias[2] - 2.0).abs() < 0.5, "{bias:?}");
    assert_eq!(plain.gained(), None, "{plain:?}");
    // Later parts are fitted with this calibration: both models have the same distributions now.
    let linear = fit.fusions.iter().find(|part| part.fitted.method == FusionMethod::Linear).unwrap();
    assert!(linear.change.value.abs() < 0.02, "{linear:?}");
    let (before, after) = (&fit.before.metrics, &fit.after.metrics);
    assert!(after.nll.value < before.nll.value - 0.05, "{} after {}", after.nll.value, before.nll.value);
}

#[test]
fn scaling_that_is_configured_is_compared_with() {
    let right = json!({ "scaling": { "fond": { "scale": [1, 1, 1], "bias": [0, 0, -2] } } });
    let fit = fitted(&policy(&right), &data(2000, 2.0));
    assert_eq!(fit.calibrations[0].gained(), None, "neither a temperature nor others are better");
    // After the model has changed, a temperature replaces the scaling.
    let fit = fitted(&policy(&right), &data(2000, 0.0));
    let gained = fit.calibrations[0].gained().unwrap();
    let temperature = gained.temperature().unwrap().get();
    assert!((temperature - 1.0).abs() < 0.1, "{temperature}");
}

#[test]
fn two_labels_and_few_images_get_temperatures_only() {
    let two = TaskSection {
        labels: vec!["no".to_owned(), "yes".to_owned()],
        question: "?".to_owned(),
        stages: serde_json::from_value(json!([{ "models": ["fond"] }, { "models": ["plain"] }])).unwrap(),
        ..TaskSection::default()
    };
    let two = Policy::from_section(&two, &BTreeSet::from(["fond", "plain"].map(str::to_owned))).unwrap();
    let mut of_two = data(100, 2.0);
    for (label, votes) in &mut of_two {
        *label = (*label).min(1);
        votes.iter_mut().for_each(|vote| vote.output.logits.truncate(2));
    }
    assert!(fitted(&two, &of_two).calibrations.iter().all(|of_model| of_model.vector.is_none()));
    let few = fitted(&policy(&json!({})), &data(FOLDS * 2, 0.3));
    assert!(few.calibrations.iter().all(|of_model| of_model.gained().is_none()));
}
