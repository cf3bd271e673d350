//! Searches for the confidence thresholds of a cascade, along its curve of cost and accuracy. Pure.

use std::cmp::Ordering;

use concord_policy::{Policy, Stage};

/// The number of thresholds that are tried for each stage: quantiles of its confidences.
const CANDIDATES: usize = 64;
/// The number of prices of an error, from nothing to more than any cost; each gives points of the curve.
const EXCHANGE_RATES: usize = 24;
/// The largest number of rounds over all stages; the search ends as soon as one changes nothing.
const ROUNDS_MAX: usize = 8;

/// The answer for an image if the cascade stopped at a stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StageAnswer {
    pub(crate) probabilities: Vec<f64>,
    /// The confidence of the answer, or the output of the stage's correctness estimator if it has one.
    pub(crate) confidence: f64,
    /// True if all models so far have the same most probable label.
    pub(crate) agreement: bool,
    pub(crate) is_right: bool,
    /// The cost of all models so far, in milliseconds or given prices.
    pub(crate) cost: f64,
}

/// The condition on which a stage other than the last ends the cascade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    pub(crate) confidence: f64,
    pub(crate) needs_agreement: bool,
}

impl Rule {
    /// Returns the threshold; `None` if the stage never ends the cascade.
    pub(crate) fn finite_confidence(&self) -> Option<f64> {
        Some(self.confidence).filter(|confidence| confidence.is_finite())
    }

    /// Returns whether this answer may end the cascade if its confidence is high enough.
    fn lets_stop(self, answer: &StageAnswer) -> bool {
        answer.agreement || !self.needs_agreement
    }
}

/// The objective of a search for thresholds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Objective {
    /// The fewest errors at no more than this mean cost per image.
    MaxCost(f64),
    /// The least cost at no less than this accuracy.
    MinAccuracy(f64),
}

impl Objective {
    /// Returns whether the outcome keeps to the bound.
    pub(crate) fn is_reached_by(self, outcome: &Outcome) -> bool {
        match self {
            Self::MaxCost(cost) => outcome.cost <= cost,
            Self::MinAccuracy(accuracy) => outcome.accuracy >= accuracy,
        }
    }

    /// Compares two outcomes that keep to the bound; the better one is less.
    pub(crate) fn compare(self, one: &Outcome, other: &Outcome) -> Ordering {
        let accuracy = other.accuracy.total_cmp(&one.accuracy);
        let cost = one.cost.total_cmp(&other.cost);
        match self {
            Self::MaxCost(_) => accuracy.then(cost),
            Self::MinAccuracy(_) => cost.then(accuracy),
        }
    }
}

/// The accuracy and mean cost of a cascade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) accuracy: f64,
    /// The mean cost per image.
    pub(crate) cost: f64,
}

/// Returns the stage at which an image's cascade stops.
pub(crate) fn stops_at(image: &[StageAnswer], rules: &[Rule]) -> usize {
    let stops = |(answer, rule): (&StageAnswer, &Rule)| {
        answer.confidence >= rule.confidence && rule.lets_stop(answer)
    };
    image.iter().zip(rules).position(stops).unwrap_or(image.len() - 1)
}

/// Returns the accuracy and mean cost of these rules on images.
pub(crate) fn outcome(images: &[&[StageAnswer]], rules: &[Rule]) -> Outcome {
    let (mut right, mut cost) = (0_usize, 0.0);
    for image in images {
        let answer = &image[stops_at(image, rules)];
        right += usize::from(answer.is_right);
        cost += answer.cost;
    }
    let count = images.len().max(1) as f64;
    Outcome { accuracy: right as f64 / count, cost: cost / count }
}

/// Returns the accept rules of all stages but the last; a stage without one never ends the cascade.
pub(crate) fn rules(policy: &Policy) -> Vec<Rule> {
    let stages = policy.stages();
    let rule = |stage: &Stage| match stage.accept() {
        Some(rule) => Rule {
            confidence: rule.correctness().unwrap_or(rule.confidence()).get(),
            needs_agreement: rule.needs_agreement(),
        },
        None => Rule { confidence: f64::INFINITY, needs_agreement: false },
    };
    stages[..stages.len() - 1].iter().map(rule).collect()
}

/// Searches for the rules that are best for the objective; `None` if none keep to its bound. Whether a stage
/// needs agreement is taken from `rules`.
pub(crate) fn search(images: &[&[StageAnswer]], rules: &[Rule], objective: Objective) -> Option<Vec<Rule>> {
    let outcomes = along_the_curve(images, rules).into_iter().map(|rules| (outcome(images, &rules), rules));
    let reached = outcomes.filter(|(outcome, _)| objective.is_reached_by(outcome));
    reached.min_by(|(one, _), (other, _)| objective.compare(one, other)).map(|(_, rules)| rules)
}

/// Returns the outcomes of other thresholds, the cheapest first, each more expensive and more accurate than
/// the one before. Whether a stage needs agreement is taken from `rules`.
pub(crate) fn curve(images: &[&[StageAnswer]], rules: &[Rule]) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> =
        along_the_curve(images, rules).iter().map(|rules| outcome(images, rules)).collect();
    outcomes
        .sort_by(|one, other| one.cost.total_cmp(&other.cost).then(other.accuracy.total_cmp(&one.accuracy)));
    let mut most = f64::NEG_INFINITY;
    outcomes.retain(|outcome| {
        let is_better = outcome.accuracy > most;
        most = most.max(outcome.accuracy);
        is_better
    });
    outcomes
}

/// Returns rules from the cheapest to the most accurate ones, and `rules` themselves.
///
/// For each of several prices of an error, coordinate descent over the stages searches for the rules with the
/// least sum of cost and priced errors; they lie on the convex hull of the curve.
fn along_the_curve(images: &[&[StageAnswer]], rules: &[Rule]) -> Vec<Vec<Rule>> {
    let candidates: Vec<Vec<f64>> = (0..rules.len()).map(|stage| candidates(images, stage)).collect();
    let most = images.iter().filter_map(|image| image.last()).map(|last| last.cost).fold(0.0, f64::max);
    let mut found = vec![rules.to_vec()];
    for step in 0..EXCHANGE_RATES {
        // From a thousandth of the cost of the most expensive image to a million times it, in equal ratios.
        let price = most * 1e-3 * 1e9_f64.powf(step as f64 / (EXCHANGE_RATES - 1) as f64);
        // Starts with every cascade ending at the first stage, and with none ending before the last.
        for place in [<[f64]>::first, <[f64]>::last] {
            let confidence = |stage: usize| place(&candidates[stage]).copied().unwrap_or(1.0);
            let begin: Vec<Rule> = (rules.iter().enumerate())
                .map(|(stage, rule)| Rule { confidence: confidence(stage), ..*rule })
                .collect();
            found.push(descend(images, begin, &candidates, price));
        }
    }
    found
}

/// Returns thresholds that separate images at a stage, and 1, which ends a cascade only at full confidence.
fn candidates(images: &[&[StageAnswer]], stage: usize) -> Vec<f64> {
    let mut confidences: Vec<f64> = images.iter().map(|image| image[stage].confidence).collect();
    confidences.sort_by(f64::total_cmp);
    confidences.dedup();
    let middle = |index: usize| {
        let here = confidences[index];
        // Halfway between two images, so that rounding does not matter.
        index.checked_sub(1).map_or(here, |before| (confidences[before] + here) / 2.0)
    };
    let count = confidences.len();
    let mut candidates: Vec<f64> =
        (0..CANDIDATES.min(count)).map(|index| middle(index * count / CANDIDATES.min(count))).collect();
    candidates.push(1.0);
    candidates
}

fn descend(
    images: &[&[StageAnswer]],
    mut rules: Vec<Rule>,
    candidates: &[Vec<f64>],
    price: f64,
) -> Vec<Rule> {
    /// The relative difference of sums in another order is smaller.
    const ROUNDING: f64 = 1e-12;
    let loss = |outcome: Outcome| outcome.cost + price * (1.0 - outcome.accuracy);
    let mut least = loss(outcome(images, &rules));
    for _ in 0..ROUNDS_MAX {
        let before = least;
        for stage in 0..rules.len() {
            let sweep = Sweep::new(images, &rules, stage);
            for &confidence in &candidates[stage] {
                let now = loss(sweep.outcome(confidence));
                if now < least * (1.0 - ROUNDING) {
                    least = now;
                    rules[stage].confidence = confidence;
                }
            }
        }
        if least >= before {
            break;
        }
    }
    rules
}

/// The outcomes of all thresholds of one stage, the other stages unchanged: the same as [`outcome`], but
/// computed by a single pass over the images.
struct Sweep {
    images: usize,
    /// The confidences of the images that reach the stage and may end there, the lowest first.
    confidences: Vec<f64>,
    /// The number of right answers and the total cost, if as many images as the index, those of the lowest
    /// confidence, go on.
    totals: Vec<(f64, f64)>,
}

impl Sweep {
    fn new(images: &[&[StageAnswer]], rules: &[Rule], stage: usize) -> Self {
        let others_stop = {
            let mut rules = rules.to_vec();
            rules[stage].confidence = f64::INFINITY;
            rules
        };
        let (mut right, mut cost) = (0.0, 0.0);
        let mut undecided = Vec::with_capacity(images.len());
        for image in images {
            let (here, end) = (&image[stage], stops_at(image, &others_stop));
            let last = &image[end];
            if end > stage && rules[stage].lets_stop(here) {
                right += f64::from(u8::from(here.is_right));
                cost += here.cost;
                let change = f64::from(u8::from(last.is_right)) - f64::from(u8::from(here.is_right));
                undecided.push((here.confidence, change, last.cost - here.cost));
            } else {
                right += f64::from(u8::from(last.is_right));
                cost += last.cost;
            }
        }
        undecided.sort_unstable_by(|(one, ..), (other, ..)| one.total_cmp(other));
        let mut totals = vec![(right, cost)];
        for (_, more_right, more_cost) in &undecided {
            right += more_right;
            cost += more_cost;
            totals.push((right, cost));
        }
        let confidences = undecided.into_iter().map(|(confidence, ..)| confidence).collect();
        Self { images: images.len(), confidences, totals }
    }

    fn outcome(&self, confidence: f64) -> Outcome {
        let going_on = self.confidences.partition_point(|other| *other < confidence);
        let (right, cost) = self.totals[going_on];
        let count = self.images.max(1) as f64;
        Outcome { accuracy: right / count, cost: cost / count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image of two stages: the confidence of the first, and whether each is right; the first costs 1,
    /// both cost 10.
    fn image(confidence: f64, first: bool, second: bool) -> Vec<StageAnswer> {
        let answer = |confidence, is_right, cost| StageAnswer {
            probabilities: Vec::new(),
            confidence,
            agreement: true,
            is_right,
            cost,
        };
        vec![answer(confidence, first, 1.0), answer(0.9, second, 10.0)]
    }

    /// Ten images: the first stage is right about the seven of the highest confidence, the second about all.
    fn images() -> Vec<Vec<StageAnswer>> {
        (0..10).map(|index| image(0.5 + 0.04 * f64::from(index), index >= 3, true)).collect()
    }

    fn found(objective: Objective) -> Option<Outcome> {
        let images = images();
        let views: Vec<&[StageAnswer]> = images.iter().map(Vec::as_slice).collect();
        let rules = [Rule { confidence: 0.99, needs_agreement: false }];
        search(&views, &rules, objective).map(|rules| outcome(&views, &rules))
    }

    #[test]
    fn a_cascade_stops_at_the_first_stage_above_its_threshold() {
        let image = image(0.8, true, true);
        let disagreeing = vec![StageAnswer { agreement: false, ..image[0].clone() }, image[1].clone()];
        for (answers, confidence, needs_agreement, expected) in [
            (&image, 0.8, true, 0),
            (&image, 0.81, false, 1),
            (&disagreeing, 0.5, true, 1),
            (&disagreeing, 0.5, false, 0),
        ] {
            assert_eq!(stops_at(answers, &[Rule { confidence, needs_agreement }]), expected);
        }
    }

    #[test]
    fn thresholds_reach_their_goal_for_the_least() {
        for (objective, accuracy, cost) in [
            // Three of ten are asked twice.
            (Objective::MinAccuracy(1.0), 1.0, 3.7),
            (Objective::MinAccuracy(0.0), 0.7, 1.0),
            (Objective::MaxCost(3.7), 1.0, 3.7),
            (Objective::MaxCost(1.5), 0.7, 1.0),
        ] {
            let outcome = found(objective).unwrap();
            assert!((outcome.accuracy - accuracy).abs() < 1e-9, "{objective:?}: {outcome:?}");
            assert!((outcome.cost - cost).abs() < 1e-9, "{objective:?}: {outcome:?}");
        }
    }

    #[test]
    fn the_curve_rises_from_the_cheapest_to_the_best() {
        let images = images();
        let views: Vec<&[StageAnswer]> = images.iter().map(Vec::as_slice).collect();
        let curve = curve(&views, &[Rule { confidence: 0.99, needs_agreement: false }]);
        let ends = [curve.first().unwrap(), curve.last().unwrap()];
        assert!((ends[0].cost - 1.0).abs() < 1e-9 && (ends[0].accuracy - 0.7).abs() < 1e-9, "{curve:?}");
        // Asking the second stage about more than the three would bring nothing.
        assert!((ends[1].cost - 3.7).abs() < 1e-9 && (ends[1].accuracy - 1.0).abs() < 1e-9, "{curve:?}");
        assert!(
            curve.windows(2).all(|pair| pair[0].cost < pair[1].cost && pair[0].accuracy < pair[1].accuracy)
        );
    }

    #[test]
    fn a_sweep_gives_the_outcome_of_each_threshold() {
        let chance = |index: usize, of: f64| (index as f64 * of.sqrt()).fract();
        let answer = |index: usize, stage: usize| StageAnswer {
            probabilities: Vec::new(),
            confidence: (chance(index, [2.0, 3.0, 5.0][stage]) * 20.0).round() / 20.0,
            agreement: chance(index, [7.0, 11.0, 13.0][stage]) < 0.7,
            is_right: chance(index, [17.0, 19.0, 23.0][stage]) < 0.8,
            cost: chance(index, 29.0) + 3.0 * stage as f64,
        };
        let images: Vec<Vec<StageAnswer>> =
            (0..300).map(|index| (0..3).map(|stage| answer(index, stage)).collect()).collect();
        let views: Vec<&[StageAnswer]> = images.iter().map(Vec::as_slice).collect();
        let rules = [
            Rule { confidence: 0.6, needs_agreement: true },
            Rule { confidence: 0.4, needs_agreement: false },
        ];
        for stage in 0..2 {
            let sweep = Sweep::new(&views, &rules, stage);
            for confidence in [0.0, 0.05, 0.33, 0.5, 0.95, 1.0, 2.0] {
                let mut tried = rules;
                tried[stage].confidence = confidence;
                let (swept, one) = (sweep.outcome(confidence), outcome(&views, &tried));
                assert!(
                    (swept.accuracy - one.accuracy).abs() < 1e-9,
                    "{stage} {confidence}: {swept:?} {one:?}"
                );
                assert!((swept.cost - one.cost).abs() < 1e-9, "{stage} {confidence}: {swept:?} {one:?}");
            }
        }
    }

    #[test]
    fn a_goal_that_no_threshold_reaches_is_reported() {
        for objective in [Objective::MaxCost(0.5), Objective::MinAccuracy(1.01)] {
            assert_eq!(found(objective), None, "{objective:?}");
        }
    }
}
