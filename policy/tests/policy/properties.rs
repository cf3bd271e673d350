//! Tests the properties that hold for every policy and any votes.

use std::sync::Arc;

use concord_policy::{
    Calibration, Context, Decision, Logits, Policy, StopReason, Temperature, Verdict, Vote, decide,
    verdict_fits,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::learned::learned;
use super::{MODELS, failed, policy, vote};

const LABELS: [&str; 3] = ["red", "green", "blue"];

/// A task over all models in up to three stages, with arbitrary weights, temperatures and rules.
#[derive(Debug, Clone)]
struct Task {
    method: &'static str,
    weights: Vec<f64>,
    temperatures: Vec<f64>,
    /// The number of models of each stage.
    stages: &'static [usize],
    rules: Vec<Option<(f64, bool)>>,
    optional: Vec<bool>,
    /// The least correctness of each stage's rule, followed by the least weight of each stage.
    correctness: Vec<Option<f64>>,
    min_weights: Vec<Option<f64>>,
}

impl Task {
    fn section(&self, weight_factor: f64) -> Value {
        let by_model = |numbers: &[f64], factor: f64| -> Value {
            MODELS
                .iter()
                .zip(numbers)
                .map(|(model, number)| ((*model).to_owned(), json!(number * factor)))
                .collect()
        };
        let mut first = 0;
        let mut stages = Vec::new();
        for (size, rule) in self.stages.iter().zip(&self.rules) {
            let members = first..first + size;
            let optional: Vec<&str> =
                members.clone().filter(|&index| self.optional[index]).map(|index| MODELS[index]).collect();
            let mut stage = json!({ "models": MODELS[members], "optional": optional });
            if let Some((confidence, agreement)) = rule {
                stage["accept"] = json!({ "confidence": confidence, "agreement": agreement });
                if let Some(correctness) = self.correctness[stages.len()] {
                    stage["accept"]["correctness"] = json!(correctness);
                }
            }
            if let Some(least) = self.min_weights[stages.len()].filter(|_| !stages.is_empty()) {
                stage["min_weight"] = json!(least);
            }
            stages.push(stage);
            first += size;
        }
        json!({
            "question": "which?", "labels": LABELS, "learned": "a file", "stages": stages,
            "fusion": { "method": self.method, "weights": by_model(&self.weights, weight_factor) },
            "calibration": by_model(&self.temperatures, 1.0),
        })
    }

    fn policy(&self) -> Policy {
        policy(self.section(1.0))
    }

    /// Returns the policy with learned weights for all models, and a correctness estimator for the first
    /// model and one for all of them.
    fn learned_policy(&self) -> Policy {
        self.policy().with_learned(Arc::new(learned(&MODELS, &[&MODELS[..1], &MODELS])))
    }
}

fn task() -> impl Strategy<Value = Task> {
    let models = MODELS.len();
    let rule = proptest::option::of((0.01..=1.0, any::<bool>()));
    let stages =
        prop_oneof![Just(&[4][..]), Just(&[1, 3][..]), Just(&[1, 2, 1][..]), Just(&[1, 1, 1, 1][..])];
    (
        prop_oneof![Just("linear"), Just("log_linear"), Just("learned")],
        proptest::collection::vec(0.001..1000.0, models),
        proptest::collection::vec(0.05..20.0, models),
        stages,
        proptest::collection::vec(rule, models),
        proptest::collection::vec(any::<bool>(), models),
        proptest::collection::vec(proptest::option::of(0.01..=1.0), models),
        proptest::collection::vec(proptest::option::of(0.01..0.99), models),
    )
        .prop_map(
            |(method, weights, temperatures, stages, rules, optional, correctness, min_weights)| Task {
                method,
                weights,
                temperatures,
                stages,
                rules,
                optional,
                correctness,
                min_weights,
            },
        )
}

fn logits() -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(-60.0_f32..60.0, LABELS.len())
}

/// Generates a vote of every model, some of them failed.
fn votes() -> impl Strategy<Value = Vec<Vote>> {
    let one = proptest::option::weighted(0.8, logits());
    proptest::collection::vec(one, MODELS.len()).prop_map(|outcomes| {
        let voted = MODELS.iter().zip(outcomes);
        voted
            .map(|(model, logits)| logits.map_or_else(|| failed(model), |logits| vote(model, &logits)))
            .collect()
    })
}

/// Asks stage after stage, as the router does. Returns the number of decisions that this took, and the last
/// one.
fn play(policy: &Policy, all: &[Vote]) -> (usize, Decision) {
    let mut votes: Vec<Vote> = Vec::new();
    for decisions in 1..=policy.stages().len() + 1 {
        match decide(policy, &votes, &Context::default()) {
            Decision::Ask { stage } => {
                for member in policy.stages()[stage].members() {
                    votes.extend(all.iter().find(|vote| vote.model == *member.model()).cloned());
                }
            }
            end => return (decisions, end),
        }
    }
    panic!("the cascade asked more often than it has stages");
}

fn answer(decision: Decision) -> Option<Verdict> {
    match decision {
        Decision::Verdict(answer) => Some(answer),
        Decision::Ask { .. } | Decision::Failed(_) => None,
    }
}

fn nearly_equal(left: &[f64], right: &[f64]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(left, right)| (left - right).abs() < 1e-9)
}

proptest! {
    #[test]
    fn only_the_proportions_of_weights_matter(task in task(), votes in votes(), factor in 0.01..100.0) {
        let plain = answer(decide(&task.policy(), &votes, &Context::default()));
        let scaled = answer(decide(&policy(task.section(factor)), &votes, &Context::default()));
        // A confidence within rounding error of a threshold may end at another stage.
        if let (Some(plain), Some(scaled)) = (plain, scaled)
            && (plain.stage, &plain.skipped) == (scaled.stage, &scaled.skipped)
        {
            prop_assert!(nearly_equal(plain.distribution.probabilities(), scaled.distribution.probabilities()));
        }
    }

    #[test]
    fn an_answer_is_a_distribution(task in task(), votes in votes()) {
        if let Some(answer) = answer(decide(&task.policy(), &votes, &Context::default())) {
            let probabilities = answer.distribution.probabilities();
            prop_assert!(probabilities.iter().all(|p| (0.0..=1.0).contains(p)), "{probabilities:?}");
            prop_assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{probabilities:?}");
            prop_assert_eq!(answer.confidence().get(), probabilities[answer.label()]);
        }
    }

    #[test]
    fn accepted_means_that_the_rule_was_met(task in task(), votes in votes()) {
        let policy = task.policy();
        if let Some(answer) = answer(decide(&policy, &votes, &Context::default())) {
            let rule = policy.stages()[answer.stage].accept();
            let is_met = rule.is_some_and(|rule| {
                answer.confidence() >= rule.confidence() && (answer.agreement || !rule.needs_agreement())
            });
            prop_assert_eq!(answer.reason == StopReason::Accepted, is_met);
            let mut later = answer.stage + 1..policy.stages().len();
            prop_assert!(is_met || later.all(|stage| answer.skipped.contains(&stage)));
        }
    }

    #[test]
    fn a_failed_vote_only_leaves_the_others_a_larger_share(
        mut task in task(), votes in votes(), absent in 1..MODELS.len(),
    ) {
        // All models are in one stage, with and without the one that fails.
        task.stages = &[4];
        task.optional = vec![true; MODELS.len()];
        let mut with_failure = votes.clone();
        with_failure[absent] = failed(MODELS[absent]);
        let mut without = task.section(1.0);
        without["stages"][0]["models"].as_array_mut().unwrap().remove(absent);
        without["stages"][0]["optional"].as_array_mut().unwrap().remove(absent);

        let failed = answer(decide(&task.policy(), &with_failure, &Context::default()));
        let absent = answer(decide(&policy(without), &votes, &Context::default()));
        prop_assert_eq!(failed.is_some(), absent.is_some());
        if let (Some(failed), Some(absent)) = (failed, absent) {
            prop_assert_eq!(failed.distribution, absent.distribution);
            prop_assert_eq!(failed.agreement, absent.agreement);
            let reason = if absent.reason == StopReason::Exhausted { StopReason::Incomplete } else { absent.reason };
            prop_assert_eq!(failed.reason, reason);
        }
    }

    #[test]
    fn a_verdict_that_is_cached_fits_its_policy(
        task in task(), mut votes in votes(), is_learned in any::<bool>(), feature in proptest::option::of(-4.0_f32..4.0),
    ) {
        let policy = if is_learned { task.learned_policy() } else { task.policy() };
        if let Ok(output) = &mut votes[0].output {
            output.evidence.feature = feature.map(|feature| Arc::from([feature]));
        }
        let verdict = answer(decide(&policy, &votes, &Context::default()));
        if let Some(verdict) = verdict.filter(Verdict::is_lasting) {
            prop_assert!(verdict_fits(&verdict.as_cached(), &policy), "{:?}", verdict);
        }
    }

    #[test]
    fn a_temperature_keeps_the_favourite(logits in logits(), temperature in 1e-6..1e6) {
        let vote = Logits::new(&logits, logits.len()).unwrap();
        let calibrated = vote.calibrated(&Calibration::Temperature(Temperature::new(temperature).unwrap()));
        let favourite = vote.calibrated(&Calibration::NEUTRAL).argmax();
        prop_assert_eq!(calibrated.probabilities()[favourite], calibrated.confidence().get());
    }

    #[test]
    fn every_cascade_ends_and_asking_at_once_ends_the_same(
        task in task(), mut votes in votes(), is_learned in any::<bool>(), feature in proptest::option::of(-4.0_f32..4.0),
    ) {
        let policy = if is_learned { task.learned_policy() } else { task.policy() };
        if let Ok(output) = &mut votes[0].output {
            output.evidence.feature = feature.map(|feature| Arc::from([feature]));
        }
        let (decisions, end) = play(&policy, &votes);
        prop_assert!(decisions <= policy.stages().len() + 1);
        prop_assert_eq!(end, decide(&policy, &votes, &Context::default()));
    }
}
