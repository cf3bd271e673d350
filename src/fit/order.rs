//! Which stages are asked first: other orders of a policy's stages, each with thresholds of its own.
//!
//! The best other order, and its thresholds, are chosen on all folds but one and judged on that one, beside the configured
//! order with thresholds that were fitted the same way.

use std::collections::{BTreeMap, BTreeSet};

use concord_policy::{Policy, Stage};

use super::cross::{FOLDS, Work, searched};
use crate::evaluate::thresholds::{Goal, Outcome, StageAnswer, outcome, rules, stops_at};
use crate::evaluate::{Figure, Judged, stage_answer};

/// Of more stages that may move no other order is tried: four have 24 orders, five 120, each with thresholds to be searched in
/// six sets of pictures.
pub(crate) const MOVABLE_MAX: usize = 4;

/// What other orders of the stages come to.
#[derive(Debug)]
pub(crate) enum Orders {
    /// There is none to try: no goal, or no two stages that may change places.
    None,
    /// More stages may move than orders are tried of.
    TooMany { movable: usize },
    /// No other one reaches the goal.
    Unreached,
    /// One does.
    Best(OrderPart),
}

/// The best other order, on pictures that neither it nor any threshold was fitted on.
#[derive(Debug)]
pub(crate) struct OrderPart {
    /// The configured places of the stages, in the order in which they would be asked.
    pub(crate) order: Vec<usize>,
    /// The configured order; with its configured thresholds where it reaches the goal with none.
    pub(crate) now: Outcome,
    pub(crate) now_reaches: bool,
    pub(crate) reordered: Outcome,
    /// By how much the second is right more often, and dearer.
    pub(crate) accuracy: Figure,
    pub(crate) cost: Figure,
    /// Whether it is better for sure in what the goal leaves open, and not worse for sure where it misses the goal; where the
    /// configured order reaches the goal with no thresholds, whether this one does for sure.
    pub(crate) is_gain: bool,
}

impl Orders {
    /// The order that is to be used, where it is not the configured one.
    pub(crate) fn gain(&self) -> Option<&[usize]> {
        match self {
            Self::Best(part) if part.is_gain => Some(&part.order),
            _ => None,
        }
    }
}

/// For each stage of `policy` which others it may change places with: those with the same number; `None` where it stays.
///
/// `whole` has the models that are off as well. A stage stays that stands in for others, is asked only where it counts for
/// enough, or asks a gate (which belongs to the models that were asked so far), and one of which a model is off; and none
/// moves past one that stays, so that what those are about stays the same.
fn neighbourhoods(policy: &Policy, whole: &Policy) -> Vec<Option<usize>> {
    let is_on = |model: &str| policy.members().any(|member| **member.model() == *model);
    let stays = |stage: &Stage| {
        stage.burst_queue_depth().is_some()
            || stage.min_weight().is_some()
            || stage.accept().is_some_and(|rule| rule.gate().is_some())
            || !stage.members().iter().all(|member| is_on(member.model()))
    };
    let stages = whole.stages();
    // Stages before one that asks a gate are what that gate was fitted to.
    let gated = stages.iter().rposition(|stage| stage.accept().is_some_and(|rule| rule.gate().is_some()));
    let mut staying = 0;
    let mut found = Vec::with_capacity(policy.stages().len());
    for (place, stage) in stages.iter().enumerate() {
        let is_fixed = stays(stage) || gated.is_some_and(|gated| place <= gated);
        staying += usize::from(is_fixed);
        if stage.members().iter().any(|member| is_on(member.model())) {
            found.push((!is_fixed).then_some(staying));
        }
    }
    found
}

/// Every order but the configured one in which each stage stays among those that it may change places with.
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

/// Whether the stage of this model comes later in an order than it is.
fn asks_later(policy: &Policy, order: &[usize], model: &str) -> bool {
    let has_it = |stage: &Stage| stage.members().iter().any(|member| **member.model() == *model);
    let place = policy.stages().iter().position(has_it);
    order.iter().position(|stage| Some(*stage) == place) > place
}

/// How many stages can change places with another.
fn movable(neighbourhoods: &[Option<usize>]) -> usize {
    let has_other = |one: &Option<usize>| {
        one.is_some() && neighbourhoods.iter().filter(|other| *other == one).count() > 1
    };
    neighbourhoods.iter().filter(|one| has_other(one)).count()
}

/// Where a picture's cascade ends.
#[derive(Debug, Clone, Copy)]
struct End {
    is_right: bool,
    cost: f64,
}

/// An order with thresholds for the goal.
struct Tried<'a> {
    order: &'a [usize],
    /// On all pictures; `None` where it reaches the goal with none.
    whole: Option<Outcome>,
    /// On all folds but this one.
    without: Vec<Option<Outcome>>,
    /// Each picture by the thresholds that were found without its fold; those of the configuration where there were none.
    ends: Vec<End>,
}

/// What stages answer together for each picture, by their places.
type Answers = BTreeMap<BTreeSet<usize>, Vec<StageAnswer>>;

impl Work<'_> {
    /// The other orders of `self.policy` for a goal, where pictures are judged by these policies of their folds, and `backbone`
    /// is to be asked no later than it is.
    pub(super) fn orders(
        &self,
        whole: &Policy,
        policy_of: &dyn Fn(usize) -> Option<Policy>,
        backbone: Option<&str>,
        goal: Goal,
    ) -> Option<Orders> {
        let neighbourhoods = neighbourhoods(self.policy, whole);
        let movable = movable(&neighbourhoods);
        if movable > MOVABLE_MAX {
            return Some(Orders::TooMany { movable });
        }
        let mut others = other_orders(&neighbourhoods);
        if let Some(backbone) = backbone {
            others.retain(|order| !asks_later(self.policy, order, backbone));
        }
        if others.is_empty() {
            return Some(Orders::None);
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
        let now = self.tried(&configured, &answers, goal)?;
        let others: Vec<Tried<'_>> =
            others.iter().map(|order| self.tried(order, &answers, goal)).collect::<Option<_>>()?;
        Some(self.best(&now, &others, goal).map_or(Orders::Unreached, Orders::Best))
    }

    /// What these stages answer together, whatever their order.
    fn answered_together(&self, stages: &BTreeSet<usize>, by_fold: &[Policy]) -> Option<Vec<StageAnswer>> {
        let asked = |policy: &Policy| {
            let is_out = |model: &str| {
                let of = |place: &usize| &policy.stages()[*place];
                !stages.iter().map(of).any(|stage| stage.members().iter().any(|it| **it.model() == *model))
            };
            Some(policy.without(is_out)?.all_at_once(policy.fusion()))
        };
        let by_fold: Vec<Policy> = by_fold.iter().map(asked).collect::<Option<_>>()?;
        let answer = |(picture, &fold): (&Judged<'_>, &usize)| {
            let answer = stage_answer(&by_fold[fold], self.policy, picture)?;
            // Nothing here asks for them.
            Some(StageAnswer { probabilities: Vec::new(), ..answer })
        };
        self.pictures.iter().zip(&self.fold_of).map(answer).collect()
    }

    /// Searches thresholds for an order, on all pictures and without each fold.
    fn tried<'a>(&self, order: &'a [usize], answers: &Answers, goal: Goal) -> Option<Tried<'a>> {
        let by_stage: Vec<&Vec<StageAnswer>> = (1..=order.len())
            .map(|count| answers.get(&order[..count].iter().copied().collect()))
            .collect::<Option<_>>()?;
        let of_picture = |picture: usize| by_stage.iter().map(|stage| stage[picture].clone()).collect();
        let pictures: Vec<Vec<StageAnswer>> = (0..self.pictures.len()).map(of_picture).collect();
        let configured = rules(&self.policy.in_order(order)?);
        let views: Vec<&[StageAnswer]> = pictures.iter().map(Vec::as_slice).collect();
        let whole = searched(&views, &configured, goal).map(|rules| outcome(&views, &rules));
        let mut by_fold = Vec::with_capacity(FOLDS);
        let mut without = Vec::with_capacity(FOLDS);
        for fold in 0..FOLDS {
            let others = self.without(fold, &pictures);
            let found = searched(&others, &configured, goal);
            without.push(found.as_ref().map(|rules| outcome(&others, rules)));
            by_fold.push(found.unwrap_or_else(|| configured.clone()));
        }
        let end = |(picture, &fold): (&Vec<StageAnswer>, &usize)| {
            let last = &picture[stops_at(picture, &by_fold[fold])];
            End { is_right: last.is_right, cost: last.cost }
        };
        let ends = pictures.iter().zip(&self.fold_of).map(end).collect();
        Some(Tried { order, whole, without, ends })
    }

    /// The best of the others; `None` where none reaches the goal.
    fn best(&self, now: &Tried<'_>, others: &[Tried<'_>], goal: Goal) -> Option<OrderPart> {
        let best = best_by(others, |tried| tried.whole.as_ref(), goal)?;
        // Where none reaches it without a fold, the configured order is kept for that one.
        let by_fold: Vec<&Tried<'_>> = (0..FOLDS)
            .map(|fold| best_by(others, |tried| tried.without[fold].as_ref(), goal).unwrap_or(now))
            .collect();
        let ends: Vec<End> =
            self.fold_of.iter().enumerate().map(|(picture, &fold)| by_fold[fold].ends[picture]).collect();
        let numbers = |of: &dyn Fn(&End, &End) -> f64| -> Vec<f64> {
            ends.iter().zip(&now.ends).map(|(end, now)| of(end, now)).collect()
        };
        let right = |end: &End| f64::from(u8::from(end.is_right));
        let accuracy = self.resampling.mean(&numbers(&|end, now| right(end) - right(now)));
        let cost = self.resampling.mean(&numbers(&|end, now| end.cost - now.cost));
        let reordered = mean_of(&ends);
        let is_gain = match (goal, now.whole.is_some()) {
            (Goal::MaxCost(_), true) => {
                accuracy.low > 0.0 && (goal.is_reached_by(&reordered) || cost.low <= 0.0)
            }
            (Goal::MinAccuracy(_), true) => {
                cost.high < 0.0 && (goal.is_reached_by(&reordered) || accuracy.high >= 0.0)
            }
            (Goal::MaxCost(most), false) => self.resampling.mean(&numbers(&|end, _| end.cost)).high <= most,
            (Goal::MinAccuracy(least), false) => {
                self.resampling.mean(&numbers(&|end, _| right(end))).low >= least
            }
        };
        Some(OrderPart {
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

/// The order whose outcome is best, of those that have one.
fn best_by<'a, 'b>(
    tried: &'a [Tried<'b>],
    of: impl Fn(&'a Tried<'b>) -> Option<&'a Outcome>,
    goal: Goal,
) -> Option<&'a Tried<'b>> {
    let reaching = tried.iter().filter_map(|tried| Some((tried, of(tried)?)));
    reaching.min_by(|(_, one), (_, other)| goal.compare(one, other)).map(|(tried, _)| tried)
}

fn mean_of(ends: &[End]) -> Outcome {
    let count = ends.len().max(1) as f64;
    let right = ends.iter().filter(|end| end.is_right).count();
    Outcome { accuracy: right as f64 / count, cost: ends.iter().map(|end| end.cost).sum::<f64>() / count }
}

#[cfg(test)]
mod tests;
