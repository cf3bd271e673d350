use std::collections::BTreeSet;

use concord_policy::TaskSection;
use serde_json::json;

use super::super::cross_fit::{Fit, FitData, FitOptions, fit};
use super::*;
use crate::evaluate::{Objective as CascadeObjective, StoredVote};

fn policy() -> Policy {
    let section: TaskSection = serde_json::from_value(json!({
        "question": "?", "labels": ["no", "yes"],
        "stages": [{ "models": ["cheap"], "accept": { "confidence": 0.99 } }, { "models": ["dear"] }],
    }))
    .unwrap();
    Policy::from_section(&section, &BTreeSet::from(["cheap", "dear"].map(str::to_owned))).unwrap()
}

/// Returns a pseudorandom fraction that is the same in every run (Weyl's sequence).
fn chance(index: usize, of: u32) -> f64 {
    (index as f64 * f64::from(of).sqrt()).fract()
}

/// The kind of synthetic images. `cheap` knows the answers for the light ones and guesses for the dark ones;
/// `dear` does the reverse, at ten times the cost. Both always have the same confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Images {
    /// The first number of the feature separates light from dark images.
    Informative,
    /// The same, but `dear` always gives the answer of `cheap`.
    Uninformative,
    /// The same, but `cheap` is more confident where it guesses.
    Misleading,
}

fn data(count: usize, images: Images) -> Vec<(usize, [StoredVote; 2])> {
    let vote = |logit: f32, feature: Option<Vec<f32>>, milliseconds: u64| {
        let mut vote = StoredVote::of(vec![0.0, logit], milliseconds);
        vote.output.evidence.feature = feature.map(Arc::from);
        vote
    };
    (0..count)
        .map(|index| {
            let (is_yes, is_dark) = (chance(index, 2) < 0.5, chance(index, 3) < 0.4);
            let says = |knows: bool, of: u32| {
                let says_yes = if knows { is_yes } else { chance(index, of) < 0.5 };
                if says_yes { 2.0 } else { -2.0 }
            };
            let seen = if images == Images::Informative && is_dark { 1.0 } else { -1.0 };
            let feature = Some(vec![seen, chance(index, 7) as f32]);
            let cheap = says(!is_dark, 5);
            let dear = if images == Images::Uninformative { cheap } else { says(is_dark, 11) };
            let sureness = if images == Images::Misleading && is_dark { 2.0 } else { 1.0 };
            (usize::from(is_yes), [vote(sureness * cheap, feature, 1), vote(dear, None, 10)])
        })
        .collect()
}

fn with_goal(objective: CascadeObjective) -> FitOptions {
    FitOptions { objective: Some(objective), ..FitOptions::default() }
}

fn fitted(data: &[(usize, [StoredVote; 2])], options: FitOptions) -> Fit {
    let images: Vec<LabeledExample<'_>> = data
        .iter()
        .map(|(label, votes)| LabeledExample { label: *label, votes: votes.iter().collect(), prices: None })
        .collect();
    let groups: Vec<usize> = (0..data.len()).collect();
    fit(&policy(), &policy(), FitData { images: &images, groups: &groups }, options).unwrap()
}

#[test]
fn weights_and_temperatures_are_learned_where_the_feature_tells_who_is_right() {
    let fit = fitted(&data(1000, Images::Informative), with_goal(CascadeObjective::MinAccuracy(0.9)));
    let learned = fit.learned.as_ref().unwrap();
    let weights = learned.weights.as_ref().unwrap();
    assert!(weights.is_gain() && weights.change.value < -0.1, "{:?}", weights.change);
    assert_eq!(fit.method(), Some(FusionMethod::Learned));
    let networks = fit.networks().unwrap();
    assert!(networks.weighs("cheap") && networks.weighs("dear"));
    // The confidence alone shows what `cheap` does not know, and a correctness estimator has nothing to add.
    let estimator = &learned.estimators[0];
    assert!(estimator.by_confidence > 0.8 && !estimator.is_gain() && !fit.has_estimator(0), "{estimator:?}");
    // The second model is asked only about images that the first does not know.
    assert!(fit.after.outcome.accuracy > 0.97, "{:?}", fit.after.outcome);
    assert!(fit.after.outcome.cost < 7.0, "{:?}", fit.after.outcome);
}

#[test]
fn a_correctness_estimator_is_learned_where_the_confidence_misleads() {
    let fit = fitted(&data(1000, Images::Misleading), with_goal(CascadeObjective::MinAccuracy(0.8)));
    let estimator = &fit.learned.as_ref().unwrap().estimators[0];
    assert!(
        estimator.is_gain() && estimator.by_estimator > 0.8 && estimator.by_confidence < 0.4,
        "{estimator:?}"
    );
    assert!(fit.has_estimator(0) && !fit.has_estimator(1));
    assert!(fit.networks().unwrap().has_estimator(&[Arc::from("cheap")]));
}

#[test]
fn an_uninformative_feature_gives_no_significant_gain() {
    let fit = fitted(&data(1000, Images::Uninformative), with_goal(CascadeObjective::MinAccuracy(0.5)));
    let learned = fit.learned.as_ref().unwrap();
    let weights = learned.weights.as_ref().unwrap();
    assert!(!weights.is_gain(), "{:?}", weights.change);
    assert!(!learned.estimators[0].is_gain(), "{:?}", learned.estimators[0].change);
    assert!(fit.networks().is_none() && !fit.has_estimator(0));
    assert_ne!(fit.method(), Some(FusionMethod::Learned));
}

#[test]
fn networks_that_do_not_gain_are_used_where_that_is_asked_for_and_none_is_learned_where_none_is_wanted() {
    let data = data(1000, Images::Uninformative);
    let wanted = |learning| FitOptions { learning, ..with_goal(CascadeObjective::MinAccuracy(0.5)) };
    let always = fitted(&data, wanted(Learning::Always));
    assert!(!always.learned.as_ref().unwrap().weights.as_ref().unwrap().is_gain());
    assert!(always.has_estimator(0) && always.networks().unwrap().weighs("dear"));
    assert_eq!(always.method(), Some(FusionMethod::Learned));
    assert_eq!(
        always.fusion().unwrap().method,
        FusionMethod::LogLinear,
        "what counts where they cannot be read"
    );
    assert!(fitted(&data, wanted(Learning::Never)).learned.is_none());
}

#[test]
fn correctness_estimators_want_a_goal_and_networks_a_feature() {
    let mut data = data(400, Images::Informative);
    let without_goal = fitted(&data, FitOptions::default());
    assert!(without_goal.learned.as_ref().unwrap().estimators.is_empty());
    let unreachable = fitted(&data, with_goal(CascadeObjective::MaxCost(0.5)));
    assert!(unreachable.confidences.is_none() && !unreachable.has_estimator(0));
    data[7].1[0].output.evidence.feature = None;
    assert!(fitted(&data, FitOptions::default()).learned.is_none(), "one image has none");
}
