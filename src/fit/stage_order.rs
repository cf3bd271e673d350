//! Searches for a better order of a policy's stages, each order with thresholds of its own.
//!
//! The best other order and its thresholds are chosen on all folds but one and evaluated on that one, against
//! the configured order with thresholds that are fitted the same way.

use std::collections::{BTreeMap, BTreeSet};

use concord_policy::{Policy, Stage};

use super::cross_fit::{CrossFit, FOLDS, searched};
use crate::evaluate::thresholds::{Objective, Outcome, StageAnswer, outcome, rules, stops_at};
use crate::evaluate::{Estimate, LabeledExample, stage_answer};

/// The largest number of movable stages for which other orders are tried: four have 24 orders, five 120, each
/// with thresholds to be searched in six sets of images.
pub(crate) const MOVABLE_MAX: usize = 4;

/// The result of trying other orders of the stages.
#[derive(Debug)]
pub(crate) enum StageOrders {
    /// There are none to try: no objective, or no two stages that may change places.
    None,
    /// Too many stages may move.
    TooMany { movable: usize },
    /// No other order reaches the objective.
    Unreached,
    /// The best other order that reaches the objective.
    Best(OrderCandidate),
}

/// The best other order, evaluated on images that neither it nor any threshold was fitted on.
#[derive(Debug)]
pub(crate) struct OrderCandidate {
    /// The configured places of the stages, in the new order.
    pub(crate) order: Vec<usize>,
    /// The outcome of the configured order; with its configured thresholds if none reach the objective.
    pub(crate) now: Outcome,
    pub(crate) now_reaches: bool,
    pub(crate) reordered: Outcome,
    /// The differences in accuracy and in cost of the new order from the configured one.
    pub(crate) accuracy: Estimate,
    pub(crate) cost: Estimate,
    /// True if the new order is significantly better in what the objective optimizes, and not significantly
    /// worse in its bound if it misses that; if no thresholds make the configured order reach the objective,
    /// true if the new one reaches it significantly.
    pub(crate) is_gain: bool,
}

impl StageOrders {
    /// Returns the order to be written; `None` if it is the configured one.
    pub(crate) fn gain(&self) -> Option<&[usize]> {
        match self {
            Self::Best(part) if part.is_gain => Some(&part.order),
            _ => None,
        }
    }

    /// Returns the policy with its stages in the order to be written; `None` if it has other stages.
    pub(super) fn applied_to(&self, policy: &Policy) -> Option<Policy> {
        match self.gain() {
            Some(order) => policy.in_order(order),
            None => Some(policy.clone()),
        }
    }
}

/// Returns a number for each stage of `policy`; stages of the same number may change places, and one with
/// `None` is fixed.
///
/// `whole` has the models that are off as well. A stage is fixed if it has `burst_queue_depth` or
/// `min_weight`, asks a correctness estimator (which was fitted to the models that are asked up to it), or
/// has a model that is off. No stage moves past a fixed one, so that the models asked before a fixed stage
/// stay the same.
fn neighbourhoods(policy: &Policy, whole: &Policy) -> Vec<Option<usize>> {
    let is_on = |model: &str| policy.members().any(|member| **member.model() == *model);
    let stays = |stage: &Stage| {
        stage.burst_queue_depth().is_some()
            || stage.min_weight().is_some()
            || stage.accept().is_some_and(|rule| rule.correctness().is_some())
            || !stage.members().iter().all(|member| is_on(member.model()))
    };
    let stages = whole.stages();
    // A correctness estimator was fitted to the stages before it.
    let estimated =
        stages.iter().rposition(|stage| stage.accept().is_some_and(|rule| rule.correctness().is_some()));
    let mut staying = 0;
    let mut found = Vec::with_capacity(policy.stages().len());
    for (place, stage) in stages.iter().enumerate() {
        let is_fixed = stays(stage) || estimated.is_some_and(|estimated| place <= estimated);
        staying += usize::from(is_fixed);
        if stage.members().iter().any(|member| is_on(member.model())) {
            found.push((!is_fixed).then_some(staying));
        }
    }
    found
}

/// Returns every order, except the configured one, in which stages only change places with those of the same
/// number.
fn other_orders(neighbourhoods: &[Option<usize>]) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for place in 0..neighbourhoods.len() {
        let may_be_here = |stage: usize| match neighbourhoods[place] {
            None => stage == place,
            here => neighbourhoods[stage] == here,
        };
        let longer = |order: &Vec<usize>| {
            let free =
                (0..neighbourhoods.len()).filter(|stage| may_be_here(*stage) && !order.contains(stage));
            free.map(|stage| [&order[..], &[stage]].concat()).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    orders.retain(|order| order.iter().enumerate().any(|(place, stage)| place != *stage));
    orders
}

/// Returns whether an order moves the stage of this model back.
fn asks_later(policy: &Policy, order: &[usize], model: &str) -> bool {
    let has_it = |stage: &Stage| stage.members().iter().any(|member| **member.model() == *model);
    let place = policy.stages().iter().position(has_it);
    order.iter().position(|stage| Some(*stage) == place) > place
}

/// Returns the number of stages that can change places with another.
fn movable(neighbourhoods: &[Option<usize>]) -> usize {
    let has_other = |one: &Option<usize>| {
        one.is_some() && neighbourhoods.iter().filter(|other| *other == one).count() > 1
    };
    neighbourhoods.iter().filter(|one| has_other(one)).count()
}

/// The end of an image's cascade.
#[derive(Debug, Clone, Copy)]
struct CascadeEnd {
    is_right: bool,
    cost: f64,
}

/// An order with thresholds for the goal.
struct ScoredOrder<'a> {
    order: &'a [usize],
    /// The outcome on all images; `None` if no thresholds reach the objective.
    whole: Option<Outcome>,
    /// The outcomes on all folds but each; `None` if no thresholds reach the objective there.
    without: Vec<Option<Outcome>>,
    /// The end of each image's cascade, with the thresholds that were found without its fold, or else the
    /// configured ones.
    ends: Vec<CascadeEnd>,
}

/// The answers of sets of stages for each image; a set has the configured places.
type Answers = BTreeMap<BTreeSet<usize>, Vec<StageAnswer>>;

impl CrossFit<'_> {
    /// Tries the other orders of `self.policy` for an objective, with the policies of the folds. An order
    /// that asks `backbone` later than the configured one is left out.
    pub(super) fn orders(
        &self,
        whole: &Policy,
        policy_of: &dyn Fn(usize) -> Option<Policy>,
        backbone: Option<&str>,
        objective: Objective,
    ) -> Option<StageOrders> {
        let neighbourhoods = neighbourhoods(self.policy, whole);
        let movable = movable(&neighbourhoods);
        if movable > MOVABLE_MAX {
            return Some(StageOrders::TooMany { movable });
        }
        let mut others = other_orders(&neighbourhoods);
        if let Some(backbone) = backbone {
            others.retain(|order| !asks_later(self.policy, order, backbone));
        }
        if others.is_empty() {
            return Some(StageOrders::None);
        }
        let configured: Vec<usize> = (0..neighbourhoods.len()).collect();
        let by_fold: Vec<Policy> = (0..FOLDS).map(policy_of).collect::<Option<_>>()?;
        let heads = others
            .iter()
            .chain([&configured])
            .flat_map(|order| (1..=order.len()).map(|count| &order[..count]));
        let sets: BTreeSet<BTreeSet<usize>> = heads.map(|head| head.iter().copied().collect()).collect();
        let answers: Answers = sets
            .into_iter()
            .map(|stages| Some((stages.clone(), self.answered_together(&stages, &by_fold)?)))
            .collect::<Option<_>>()?;
        let now = self.tried(&configured, &answers, objective)?;
        let others: Vec<ScoredOrder<'_>> =
            others.iter().map(|order| self.tried(order, &answers, objective)).collect::<Option<_>>()?;
        Some(self.best(&now, &others, objective).map_or(StageOrders::Unreached, StageOrders::Best))
    }

    /// Returns the answers of these stages together, which do not depend on their order.
    fn answered_together(&self, stages: &BTreeSet<usize>, by_fold: &[Policy]) -> Option<Vec<StageAnswer>> {
        let by_fold: Vec<Policy> =
            by_fold.iter().map(|policy| only_stages(policy, stages)).collect::<Option<_>>()?;
        let answer = |(image, &fold): (&LabeledExample<'_>, &usize)| {
            let answer = stage_answer(&by_fold[fold], self.policy, image)?;
            // Not needed here, and large.
            Some(StageAnswer { probabilities: Vec::new(), ..answer })
        };
        self.images.iter().zip(&self.fold_of).map(answer).collect()
    }

    /// Searches for the thresholds of an order, on all images and without each fold.
    fn tried<'a>(
        &self,
        order: &'a [usize],
        answers: &Answers,
        objective: Objective,
    ) -> Option<ScoredOrder<'a>> {
        let by_stage: Vec<&Vec<StageAnswer>> = (1..=order.len())
            .map(|count| answers.get(&order[..count].iter().copied().collect()))
            .collect::<Option<_>>()?;
        let of_image = |image: usize| by_stage.iter().map(|stage| stage[image].clone()).collect();
        let images: Vec<Vec<StageAnswer>> = (0..self.images.len()).map(of_image).collect();
        let configured = rules(&self.policy.in_order(order)?);
        let views: Vec<&[StageAnswer]> = images.iter().map(Vec::as_slice).collect();
        let whole = searched(&views, &configured, objective).map(|rules| outcome(&views, &rules));
        let mut by_fold = Vec::with_capacity(FOLDS);
        let mut without = Vec::with_capacity(FOLDS);
        for fold in 0..FOLDS {
            let others = self.without(fold, &images);
            let found = searched(&others, &configured, objective);
            without.push(found.as_ref().map(|rules| outcome(&others, rules)));
            by_fold.push(found.unwrap_or_else(|| configured.clone()));
        }
        let end = |(image, &fold): (&Vec<StageAnswer>, &usize)| {
            let last = &image[stops_at(image, &by_fold[fold])];
            CascadeEnd { is_right: last.is_right, cost: last.cost }
        };
        let ends = images.iter().zip(&self.fold_of).map(end).collect();
        Some(ScoredOrder { order, whole, without, ends })
    }

    /// Returns the best of the other orders; `None` if none reaches the objective.
    fn best(
        &self,
        now: &ScoredOrder<'_>,
        others: &[ScoredOrder<'_>],
        objective: Objective,
    ) -> Option<OrderCandidate> {
        let best = best_by(others, |tried| tried.whole.as_ref(), objective)?;
        // If none reaches the objective without a fold, that fold keeps the configured order.
        let by_fold: Vec<&ScoredOrder<'_>> = (0..FOLDS)
            .map(|fold| best_by(others, |tried| tried.without[fold].as_ref(), objective).unwrap_or(now))
            .collect();
        let ends: Vec<CascadeEnd> =
            self.fold_of.iter().enumerate().map(|(image, &fold)| by_fold[fold].ends[image]).collect();
        let numbers = |of: &dyn Fn(&CascadeEnd, &CascadeEnd) -> f64| -> Vec<f64> {
            ends.iter().zip(&now.ends).map(|(end, now)| of(end, now)).collect()
        };
        let right = |end: &CascadeEnd| f64::from(u8::from(end.is_right));
        let accuracy = self.bootstrap.mean(&numbers(&|end, now| right(end) - right(now)));
        let cost = self.bootstrap.mean(&numbers(&|end, now| end.cost - now.cost));
        let reordered = mean_of(&ends);
        let is_gain = match (objective, now.whole.is_some()) {
            (Objective::MaxCost(_), true) => {
                accuracy.low > 0.0 && (objective.is_reached_by(&reordered) || cost.low <= 0.0)
            }
            (Objective::MinAccuracy(_), true) => {
                cost.high < 0.0 && (objective.is_reached_by(&reordered) || accuracy.high >= 0.0)
            }
            (Objective::MaxCost(most), false) => {
                self.bootstrap.mean(&numbers(&|end, _| end.cost)).high <= most
            }
            (Objective::MinAccuracy(least), false) => {
                self.bootstrap.mean(&numbers(&|end, _| right(end))).low >= least
            }
        };
        Some(OrderCandidate {
            order: best.order.to_vec(),
            now: mean_of(&now.ends),
            now_reaches: now.whole.is_some(),
            reordered,
            accuracy,
            cost,
            is_gain,
        })
    }
}

/// Returns the policy that asks all models of these stages at once; `None` if they have none.
fn only_stages(policy: &Policy, stages: &BTreeSet<usize>) -> Option<Policy> {
    let members = || stages.iter().flat_map(|place| policy.stages()[*place].members());
    let is_out = |model: &str| !members().any(|member| **member.model() == *model);
    Some(policy.without(is_out)?.all_at_once(policy.fusion()))
}

/// Returns the order with the best outcome, of those that have one.
fn best_by<'a, 'b>(
    tried: &'a [ScoredOrder<'b>],
    of: impl Fn(&'a ScoredOrder<'b>) -> Option<&'a Outcome>,
    objective: Objective,
) -> Option<&'a ScoredOrder<'b>> {
    let reaching = tried.iter().filter_map(|tried| Some((tried, of(tried)?)));
    reaching.min_by(|(_, one), (_, other)| objective.compare(one, other)).map(|(tried, _)| tried)
}

fn mean_of(ends: &[CascadeEnd]) -> Outcome {
    let count = ends.len().max(1) as f64;
    let right = ends.iter().filter(|end| end.is_right).count();
    Outcome { accuracy: right as f64 / count, cost: ends.iter().map(|end| end.cost).sum::<f64>() / count }
}

#[cfg(test)]
mod tests;
