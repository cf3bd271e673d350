//! Which confidences end a cascade: the curve of cost and accuracy, and searches along it.

use std::cmp::Ordering;

use concord_policy::{Policy, Stage};

/// Thresholds that are tried of each stage: so many quantiles of its confidences.
const CANDIDATES: usize = 64;
/// What an error is worth, in as many steps from nothing to more than any cost: points of the curve.
const EXCHANGE_RATES: usize = 24;
/// Rounds over all stages; the search ends as soon as one changes nothing.
const ROUNDS_MAX: usize = 8;

/// What a picture's answer would be if the cascade stopped at a stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StageAnswer {
    pub(crate) probabilities: Vec<f64>,
    /// Or what the stage's gate says, where it has one.
    pub(crate) confidence: f64,
    /// Whether all models so far have the same most probable label.
    pub(crate) agreement: bool,
    pub(crate) is_right: bool,
    /// Of all models so far: milliseconds, or given prices.
    pub(crate) cost: f64,
}

/// When a stage but the last ends the cascade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rule {
    pub(crate) confidence: f64,
    pub(crate) needs_agreement: bool,
}

impl Rule {
    /// `None` where it never ends the cascade.
    pub(crate) fn finite_confidence(&self) -> Option<f64> {
        Some(self.confidence).filter(|confidence| confidence.is_finite())
    }

    /// Whether this answer may end the cascade if it is sure enough.
    fn lets_stop(self, answer: &StageAnswer) -> bool {
        answer.agreement || !self.needs_agreement
    }
}

/// What thresholds are to bring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Goal {
    /// The fewest errors at no more than this cost of a picture.
    MaxCost(f64),
    /// The least cost at no less than this accuracy.
    MinAccuracy(f64),
}

impl Goal {
    /// Whether it is kept to.
    pub(crate) fn is_reached_by(self, outcome: &Outcome) -> bool {
        match self {
            Self::MaxCost(cost) => outcome.cost <= cost,
            Self::MinAccuracy(accuracy) => outcome.accuracy >= accuracy,
        }
    }

    /// Of two that reach it, the better one is less.
    pub(crate) fn compare(self, one: &Outcome, other: &Outcome) -> Ordering {
        let accuracy = other.accuracy.total_cmp(&one.accuracy);
        let cost = one.cost.total_cmp(&other.cost);
        match self {
            Self::MaxCost(_) => accuracy.then(cost),
            Self::MinAccuracy(_) => cost.then(accuracy),
        }
    }
}

/// What rules come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) accuracy: f64,
    /// Of a picture, in the mean.
    pub(crate) cost: f64,
}

/// The stage at which a picture's cascade stops.
pub(crate) fn stops_at(picture: &[StageAnswer], rules: &[Rule]) -> usize {
    let stops = |(answer, rule): (&StageAnswer, &Rule)| {
        answer.confidence >= rule.confidence && rule.lets_stop(answer)
    };
    picture.iter().zip(rules).position(stops).unwrap_or(picture.len() - 1)
}

/// What these rules come to on pictures.
pub(crate) fn outcome(pictures: &[&[StageAnswer]], rules: &[Rule]) -> Outcome {
    let (mut right, mut cost) = (0_usize, 0.0);
    for picture in pictures {
        let answer = &picture[stops_at(picture, rules)];
        right += usize::from(answer.is_right);
        cost += answer.cost;
    }
    let count = pictures.len().max(1) as f64;
    Outcome { accuracy: right as f64 / count, cost: cost / count }
}

/// The accept rules of all stages but the last; one that has none never ends a cascade.
pub(crate) fn rules(policy: &Policy) -> Vec<Rule> {
    let stages = policy.stages();
    let rule = |stage: &Stage| match stage.accept() {
        Some(rule) => Rule {
            confidence: rule.gate().unwrap_or(rule.confidence()).get(),
            needs_agreement: rule.needs_agreement(),
        },
        None => Rule { confidence: f64::INFINITY, needs_agreement: false },
    };
    stages[..stages.len() - 1].iter().map(rule).collect()
}

/// The rules that reach the goal best, `rules` saying which stages need agreement; `None` where none reaches it.
pub(crate) fn search(pictures: &[&[StageAnswer]], rules: &[Rule], goal: Goal) -> Option<Vec<Rule>> {
    let outcomes =
        along_the_curve(pictures, rules).into_iter().map(|rules| (outcome(pictures, &rules), rules));
    let reached = outcomes.filter(|(outcome, _)| goal.is_reached_by(outcome));
    reached.min_by(|(one, _), (other, _)| goal.compare(one, other)).map(|(_, rules)| rules)
}

/// What other thresholds would come to, `rules` saying which stages need agreement: the cheapest first, each dearer and
/// right more often than the one before.
pub(crate) fn curve(pictures: &[&[StageAnswer]], rules: &[Rule]) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> =
        along_the_curve(pictures, rules).iter().map(|rules| outcome(pictures, rules)).collect();
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

/// Rules from the cheapest to those that are right most often, and `rules` themselves.
///
/// For each of several prices of an error the rules with the least sum of errors and cost are searched, stage by stage in
/// turns; they lie on the lower hull of the curve.
fn along_the_curve(pictures: &[&[StageAnswer]], rules: &[Rule]) -> Vec<Vec<Rule>> {
    let candidates: Vec<Vec<f64>> = (0..rules.len()).map(|stage| candidates(pictures, stage)).collect();
    let most = pictures.iter().filter_map(|picture| picture.last()).map(|last| last.cost).fold(0.0, f64::max);
    let mut found = vec![rules.to_vec()];
    for step in 0..EXCHANGE_RATES {
        // From a thousandth of the dearest picture to a million times it, in equal ratios.
        let price = most * 1e-3 * 1e9_f64.powf(step as f64 / (EXCHANGE_RATES - 1) as f64);
        // From where every cascade ends at the first stage, and from where none ends before the last.
        for place in [<[f64]>::first, <[f64]>::last] {
            let confidence = |stage: usize| place(&candidates[stage]).copied().unwrap_or(1.0);
            let begin: Vec<Rule> = (rules.iter().enumerate())
                .map(|(stage, rule)| Rule { confidence: confidence(stage), ..*rule })
                .collect();
            found.push(descend(pictures, begin, &candidates, price));
        }
    }
    found
}

/// Thresholds that tell pictures apart at a stage, and one that ends a cascade only where there is no doubt at all.
fn candidates(pictures: &[&[StageAnswer]], stage: usize) -> Vec<f64> {
    let mut confidences: Vec<f64> = pictures.iter().map(|picture| picture[stage].confidence).collect();
    confidences.sort_by(f64::total_cmp);
    confidences.dedup();
    let middle = |index: usize| {
        let here = confidences[index];
        // Between two pictures, so that neither's rounding decides.
        index.checked_sub(1).map_or(here, |before| (confidences[before] + here) / 2.0)
    };
    let count = confidences.len();
    let mut candidates: Vec<f64> =
        (0..CANDIDATES.min(count)).map(|index| middle(index * count / CANDIDATES.min(count))).collect();
    candidates.push(1.0);
    candidates
}

fn descend(
    pictures: &[&[StageAnswer]],
    mut rules: Vec<Rule>,
    candidates: &[Vec<f64>],
    price: f64,
) -> Vec<Rule> {
    /// Sums in another order differ by less of themselves.
    const ROUNDING: f64 = 1e-12;
    let loss = |outcome: Outcome| outcome.cost + price * (1.0 - outcome.accuracy);
    let mut least = loss(outcome(pictures, &rules));
    for _ in 0..ROUNDS_MAX {
        let before = least;
        for stage in 0..rules.len() {
            let sweep = Sweep::new(pictures, &rules, stage);
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

/// What every threshold of one stage comes to where the others stay as they are: as [`outcome`], but all of them by one pass
/// over the pictures.
struct Sweep {
    pictures: usize,
    /// Of the pictures that get to the stage and may end there, the lowest first.
    confidences: Vec<f64>,
    /// How many are right, and what all cost, where so many of those with the lowest confidence go on.
    totals: Vec<(f64, f64)>,
}

impl Sweep {
    fn new(pictures: &[&[StageAnswer]], rules: &[Rule], stage: usize) -> Self {
        let others_stop = {
            let mut rules = rules.to_vec();
            rules[stage].confidence = f64::INFINITY;
            rules
        };
        let (mut right, mut cost) = (0.0, 0.0);
        let mut undecided = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let (here, end) = (&picture[stage], stops_at(picture, &others_stop));
            let last = &picture[end];
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
        Self { pictures: pictures.len(), confidences, totals }
    }

    fn outcome(&self, confidence: f64) -> Outcome {
        let going_on = self.confidences.partition_point(|other| *other < confidence);
        let (right, cost) = self.totals[going_on];
        let count = self.pictures.max(1) as f64;
        Outcome { accuracy: right / count, cost: cost / count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two stages: how sure the first is, whether it is right, whether the second is; it costs 1, both cost 10.
    fn picture(confidence: f64, first: bool, second: bool) -> Vec<StageAnswer> {
        let answer = |confidence, is_right, cost| StageAnswer {
            probabilities: Vec::new(),
            confidence,
            agreement: true,
            is_right,
            cost,
        };
        vec![answer(confidence, first, 1.0), answer(0.9, second, 10.0)]
    }

    /// Ten pictures: the first stage is right about the seven it is surest of, the second about all.
    fn pictures() -> Vec<Vec<StageAnswer>> {
        (0..10).map(|index| picture(0.5 + 0.04 * f64::from(index), index >= 3, true)).collect()
    }

    fn found(goal: Goal) -> Option<Outcome> {
        let pictures = pictures();
        let views: Vec<&[StageAnswer]> = pictures.iter().map(Vec::as_slice).collect();
        let rules = [Rule { confidence: 0.99, needs_agreement: false }];
        search(&views, &rules, goal).map(|rules| outcome(&views, &rules))
    }

    #[test]
    fn a_cascade_stops_at_the_first_stage_that_is_sure_enough() {
        let picture = picture(0.8, true, true);
        let disagreeing = vec![StageAnswer { agreement: false, ..picture[0].clone() }, picture[1].clone()];
        for (answers, confidence, needs_agreement, expected) in [
            (&picture, 0.8, true, 0),
            (&picture, 0.81, false, 1),
            (&disagreeing, 0.5, true, 1),
            (&disagreeing, 0.5, false, 0),
        ] {
            assert_eq!(stops_at(answers, &[Rule { confidence, needs_agreement }]), expected);
        }
    }

    #[test]
    fn thresholds_reach_their_goal_for_the_least() {
        for (goal, accuracy, cost) in [
            // Three of ten are asked twice.
            (Goal::MinAccuracy(1.0), 1.0, 3.7),
            (Goal::MinAccuracy(0.0), 0.7, 1.0),
            (Goal::MaxCost(3.7), 1.0, 3.7),
            (Goal::MaxCost(1.5), 0.7, 1.0),
        ] {
            let outcome = found(goal).unwrap();
            assert!((outcome.accuracy - accuracy).abs() < 1e-9, "{goal:?}: {outcome:?}");
            assert!((outcome.cost - cost).abs() < 1e-9, "{goal:?}: {outcome:?}");
        }
    }

    #[test]
    fn the_curve_rises_from_the_cheapest_to_the_best() {
        let pictures = pictures();
        let views: Vec<&[StageAnswer]> = pictures.iter().map(Vec::as_slice).collect();
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
    fn all_thresholds_at_once_come_to_what_each_comes_to() {
        let chance = |index: usize, of: f64| (index as f64 * of.sqrt()).fract();
        let answer = |index: usize, stage: usize| StageAnswer {
            probabilities: Vec::new(),
            confidence: (chance(index, [2.0, 3.0, 5.0][stage]) * 20.0).round() / 20.0,
            agreement: chance(index, [7.0, 11.0, 13.0][stage]) < 0.7,
            is_right: chance(index, [17.0, 19.0, 23.0][stage]) < 0.8,
            cost: chance(index, 29.0) + 3.0 * stage as f64,
        };
        let pictures: Vec<Vec<StageAnswer>> =
            (0..300).map(|index| (0..3).map(|stage| answer(index, stage)).collect()).collect();
        let views: Vec<&[StageAnswer]> = pictures.iter().map(Vec::as_slice).collect();
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
    fn a_goal_that_no_threshold_reaches_is_told() {
        for goal in [Goal::MaxCost(0.5), Goal::MinAccuracy(1.01)] {
            assert_eq!(found(goal), None, "{goal:?}");
        }
    }
}
