//! Fitting by parts, each judged on pictures that it was not fitted on.
//!
//! The pictures are dealt to folds, whole groups together. What is fitted on all folds but one is judged on that one; what
//! is written is then fitted on all of them. A part whose gain is not clear is left as it is configured. Which parts are
//! changed, in which order stages are then asked, and with which calibration weights are compared, is decided once for all
//! folds; whether the order changes is judged by orders that were chosen without the fold (`order.rs`).

use concord_policy::{FusionMethod, Learned, Member, Policy, Weight};

use super::by_fold::{ByFold, PolicyOf};
use super::calibrate::{Calibrations, calibrated, calibrated_by};
use super::edit::confidence_as_written;
use super::learned::{LearnedParts, Learning};
use super::order::Orders;
use super::solve::{folds, mixture_weights, product_weights};
use crate::evaluate::thresholds::{Goal, Outcome, Rule, StageAnswer, outcome, rules, search, stops_at};
use crate::evaluate::{
    ERRORS_MIN, Figure, Judged, Measured, Resampling, Scored, log_loss, measure, stage_answer,
};

/// Parts of the data; each is judged once.
pub(crate) const FOLDS: usize = 5;
/// Of what is dealt and resampled.
const SEED: u64 = 0;
const RESAMPLES: usize = 1000;

/// What is fitted on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Labelled<'a> {
    pub(crate) pictures: &'a [Judged<'a>],
    pub(crate) groups: &'a [usize],
}

/// What is wanted of a fit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FitOptions {
    /// Of the order of stages and their thresholds, which are fitted where there is one.
    pub(crate) goal: Option<Goal>,
    pub(crate) learning: Learning,
}

/// A part that could be changed: what it is, what it could be, and by how much the mean NLL falls.
#[derive(Debug, Clone)]
pub(crate) struct Part<T> {
    pub(crate) now: T,
    pub(crate) fitted: T,
    /// Of the mean NLL on pictures that it was not fitted on, and its 95 % interval: below 0 is better.
    pub(crate) change: Figure,
}

impl<T> Part<T> {
    /// Whether it is better for sure.
    pub(crate) fn is_gain(&self) -> bool {
        self.change.high < 0.0
    }
}

/// What each stage would answer for each picture.
type Answers = Vec<Vec<StageAnswer>>;

/// How votes are fused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fusion {
    pub(crate) method: FusionMethod,
    /// In the order of the policy's members, with the sum 1.
    pub(crate) weights: Vec<f64>,
}

/// What was fitted, and what it brings.
#[derive(Debug)]
pub(crate) struct Fit {
    /// In the order of the policy's members.
    pub(crate) calibrations: Vec<Calibrations>,
    /// Both methods with fitted weights beside what is configured, calibrated as they will be.
    pub(crate) fusions: Vec<Part<Fusion>>,
    /// What other orders of the stages come to.
    pub(crate) orders: Orders,
    /// In the order that is to be used: the confidence of each stage but the last, or what its gate must say, nothing for one
    /// that shall end no cascade; where a goal was given, can be reached, and there are errors enough to fit them on.
    pub(crate) confidences: Option<Vec<Option<f64>>>,
    /// Networks on a backbone's feature; `None` where no model gave one with every picture, or none were wanted.
    pub(crate) learned: Option<LearnedParts>,
    /// How often the first stage is wrong as it is configured.
    pub(crate) first_stage_errors: usize,
    /// The cascade as it is configured, and as it will be, on pictures that it was not fitted on.
    pub(crate) before: Cascade,
    pub(crate) after: Cascade,
}

/// How good a cascade is.
#[derive(Debug)]
pub(crate) struct Cascade {
    pub(crate) measured: Measured,
    pub(crate) outcome: Outcome,
}

impl Fit {
    /// The fixed weights that are to be written: those beside learned ones, or of the better method of those that gain.
    pub(crate) fn fusion(&self) -> Option<&Fusion> {
        let fusions = self.fusions.iter();
        if self.weighs() {
            let mut fitted = fusions.map(|part| &part.fitted);
            return fitted.find(|fitted| fitted.method == FusionMethod::LogLinear);
        }
        let gains = fusions.filter(|part| part.is_gain());
        gains.min_by(|one, other| one.change.value.total_cmp(&other.change.value)).map(|part| &part.fitted)
    }

    /// How votes are to be fused, where that changes.
    pub(crate) fn method(&self) -> Option<FusionMethod> {
        let fixed = self.fusion().map(|fusion| fusion.method);
        if self.weighs() { Some(FusionMethod::Learned) } else { fixed }
    }

    fn weighs(&self) -> bool {
        self.learned.as_ref().is_some_and(LearnedParts::weighs)
    }

    /// The networks that are to be written.
    pub(crate) fn networks(&self) -> Option<Learned> {
        self.learned.as_ref().and_then(LearnedParts::used)
    }

    /// The configured place of the stage that is to be at this place.
    pub(crate) fn place_of(&self, place: usize) -> usize {
        self.orders.gain().and_then(|order| order.get(place)).copied().unwrap_or(place)
    }

    /// Whether the threshold of the stage that is to be here is its gate's.
    pub(crate) fn gates_stage(&self, stage: usize) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.gates_stage(stage))
    }
}

/// Fits a policy's parts. `whole` has the models that are off as well. `None` where there is too little to fit on: fewer groups
/// than folds.
pub(crate) fn fit(
    configured: &Policy,
    whole: &Policy,
    labelled: Labelled<'_>,
    FitOptions { goal, learning }: FitOptions,
) -> Option<Fit> {
    // What was learned before may have been learned on these pictures.
    let policy = &configured.without_learned();
    let labels: Vec<usize> = labelled.pictures.iter().map(|picture| picture.label).collect();
    let fold_of = folds(labelled.groups, &labels, FOLDS, SEED);
    if (0..FOLDS).any(|fold| !fold_of.contains(&fold)) {
        return None;
    }
    let resampling = Resampling::new(labelled.groups, RESAMPLES, SEED);
    let work = Work { policy, pictures: labelled.pictures, fold_of, resampling };
    let calibrations = work.calibrations()?;
    let fusions = work.fusions(&calibrated_by(policy, &calibrations, None))?;
    let before = work.answers(&|_| Some(configured.clone()))?;
    let rules_before = rules(configured);
    let first_stage_errors = before.iter().filter(|picture| !picture[0].is_right).count();
    let has_errors = first_stage_errors >= ERRORS_MIN;
    let goal = goal.filter(|_| has_errors);
    let plain = ByFold::of(|without| work.refitted(&calibrations, &fusions, without))?;
    let mut learned = match learning {
        Learning::Never => None,
        Learning::Auto | Learning::Always => work.learn(&plain, learning, has_errors),
    };
    let weighted = |fold| LearnedParts::applied_to(learned.as_ref(), plain.without(Some(fold))?, Some(fold));
    // Before it is heard, confidences are others than the weights that read its feature make them.
    let read = learned.as_ref().filter(|learned| learned.weighs()).map(|learned| &*learned.backbone);
    let orders = goal.map_or(Some(Orders::None), |goal| work.orders(whole, &weighted, read, goal))?;
    let in_order = |policy: &Policy| match orders.gain() {
        Some(order) => policy.in_order(order),
        None => Some(policy.clone()),
    };
    let ordered = |without| in_order(plain.without(without)?);
    let rules = rules(&in_order(policy)?);
    if let Some(learned) = learned.as_mut().filter(|_| goal.is_some()) {
        learned.gates = work.gates(learned, &ordered, &in_order(policy)?, learning);
    }
    let (after, found) = work.with_thresholds(&mut learned, &ordered, &rules, goal)?;
    Some(Fit {
        first_stage_errors,
        before: work.cascade(&before, &|_| Some(rules_before.clone()))?,
        after: work.cascade(&after, &|fold| match goal.filter(|_| found.is_some()) {
            // Found on the other folds' answers.
            Some(goal) => {
                Some(searched(&work.without(fold, &after), &rules, goal).unwrap_or_else(|| rules.clone()))
            }
            None => Some(rules.clone()),
        })?,
        confidences: found.map(|rules| rules.iter().map(Rule::finite_confidence).collect()),
        calibrations,
        fusions,
        orders,
        learned,
    })
}

/// The best rules for a goal, with thresholds as they are written.
pub(super) fn searched(pictures: &[&[StageAnswer]], rules: &[Rule], goal: Goal) -> Option<Vec<Rule>> {
    let mut found = search(pictures, rules, goal)?;
    for rule in found.iter_mut().filter(|rule| rule.confidence.is_finite()) {
        rule.confidence = confidence_as_written(rule.confidence);
    }
    Some(found)
}

fn views(answers: &[Vec<StageAnswer>]) -> Vec<&[StageAnswer]> {
    answers.iter().map(Vec::as_slice).collect()
}

fn set_fusion(policy: &Policy, fusion: &Fusion) -> Policy {
    let index = |member: &Member| policy.members().position(|other| other.model() == member.model());
    policy.with_weights(fusion.method, |member| {
        let weight = index(member).and_then(|index| fusion.weights.get(index)).copied();
        weight.and_then(Weight::new).unwrap_or(member.weight())
    })
}

/// The fusion of a policy as it is.
pub(super) fn fusion_of(policy: &Policy) -> Fusion {
    let weights: Vec<f64> = policy.members().map(|member| member.weight().get()).collect();
    let sum: f64 = weights.iter().sum();
    Fusion { method: policy.fusion(), weights: weights.iter().map(|weight| weight / sum).collect() }
}

/// The models up to each stage, all at once.
pub(super) fn up_to_each_stage(policy: &Policy) -> Option<Vec<Policy>> {
    (0..policy.stages().len()).map(|stage| policy.as_far_as(stage)).collect()
}

/// What is fitted, on what, and by which folds it is judged.
pub(super) struct Work<'a> {
    pub(super) policy: &'a Policy,
    pub(super) pictures: &'a [Judged<'a>],
    pub(super) fold_of: Vec<usize>,
    pub(super) resampling: Resampling,
}

impl Work<'_> {
    /// The pictures of all folds but this one; of all where it is none.
    pub(super) fn chosen(&self, without: Option<usize>) -> impl Iterator<Item = &Judged<'_>> {
        let picture_folds = self.pictures.iter().zip(&self.fold_of);
        picture_folds.filter(move |(_, fold)| Some(**fold) != without).map(|(picture, _)| picture)
    }

    pub(super) fn without<'b>(&self, fold: usize, answers: &'b [Vec<StageAnswer>]) -> Vec<&'b [StageAnswer]> {
        let others = answers.iter().zip(&self.fold_of).filter(|(_, of)| **of != fold);
        others.map(|(answers, _)| answers.as_slice()).collect()
    }

    /// Weights by this method on all folds but one, of members that are calibrated as in `policy`.
    fn weights(&self, policy: &Policy, method: FusionMethod, without: Option<usize>) -> Option<Vec<f64>> {
        let chosen: Vec<&Judged<'_>> = self.chosen(without).collect();
        let labels: Vec<usize> = chosen.iter().map(|picture| picture.label).collect();
        let of_member = |(index, member): (usize, &Member)| {
            let of = |picture: &&Judged<'_>| calibrated(picture, index, member.calibration());
            chosen.iter().map(of).collect::<Option<Vec<_>>>()
        };
        let mut values: Vec<Vec<Vec<f64>>> =
            policy.members().enumerate().map(of_member).collect::<Option<_>>()?;
        if method == FusionMethod::LogLinear {
            for probability in values.iter_mut().flatten().flatten() {
                *probability = probability.max(f64::MIN_POSITIVE).ln();
            }
        }
        let borrowed: Vec<Vec<&[f64]>> =
            values.iter().map(|model| model.iter().map(Vec::as_slice).collect()).collect();
        match method {
            FusionMethod::Linear => mixture_weights(&borrowed, &labels),
            FusionMethod::LogLinear => product_weights(&borrowed, &labels),
            // Not the same for every image.
            FusionMethod::Learned => None,
        }
    }

    /// Both methods, of members that are calibrated as in `policy`.
    fn fusions(&self, policy: &Policy) -> Option<Vec<Part<Fusion>>> {
        let now = fusion_of(policy);
        let fused = |policy: &Policy, picture: &Judged<'_>| {
            let answer = stage_answer(&policy.all_at_once(policy.fusion()), self.policy, picture)?;
            Some(log_loss(&answer.probabilities, picture.label))
        };
        let part = |method: FusionMethod| {
            let fusion = |without| Some(Fusion { method, weights: self.weights(policy, method, without)? });
            let by_fold: Vec<Policy> = (0..FOLDS)
                .map(|fold| Some(set_fusion(policy, &fusion(Some(fold))?)))
                .collect::<Option<_>>()?;
            let changes: Vec<f64> = self
                .pictures
                .iter()
                .zip(&self.fold_of)
                .map(|(picture, &fold)| Some(fused(&by_fold[fold], picture)? - fused(policy, picture)?))
                .collect::<Option<_>>()?;
            Some(Part { now: now.clone(), fitted: fusion(None)?, change: self.resampling.mean(&changes) })
        };
        FusionMethod::FIXED.into_iter().map(part).collect()
    }

    /// The policy fused log-linearly, by weights that were fitted on all folds but one.
    pub(super) fn log_linear(&self, policy: &Policy, without: Option<usize>) -> Option<Policy> {
        let method = FusionMethod::LogLinear;
        Some(set_fusion(policy, &Fusion { method, weights: self.weights(policy, method, without)? }))
    }

    /// The policy with the parts that gain, fitted on all folds but one.
    fn refitted(
        &self,
        calibrations: &[Calibrations],
        fusions: &[Part<Fusion>],
        without: Option<usize>,
    ) -> Option<Policy> {
        let policy = calibrated_by(self.policy, calibrations, without);
        let gains = fusions.iter().filter(|part| part.is_gain());
        let Some(part) = gains.min_by(|one, other| one.change.value.total_cmp(&other.change.value)) else {
            return Some(policy);
        };
        let method = part.fitted.method;
        Some(set_fusion(&policy, &Fusion { method, weights: self.weights(&policy, method, without)? }))
    }

    /// What each stage would answer for each picture, by the policy that its fold is judged with.
    fn answers(&self, policy_of: &dyn Fn(usize) -> Option<Policy>) -> Option<Answers> {
        let by_fold: Vec<Vec<Policy>> =
            (0..FOLDS).map(|fold| up_to_each_stage(&policy_of(fold)?)).collect::<Option<_>>()?;
        let of_picture = |(picture, &fold): (&Judged<'_>, &usize)| {
            by_fold[fold]
                .iter()
                .map(|policy| stage_answer(policy, self.policy, picture))
                .collect::<Option<Vec<_>>>()
        };
        self.pictures.iter().zip(&self.fold_of).map(of_picture).collect()
    }

    /// What stages answer with what was learned, and rules for the goal; where there are none, gates are taken out.
    fn with_thresholds(
        &self,
        learned: &mut Option<LearnedParts>,
        ordered: PolicyOf<'_>,
        rules: &[Rule],
        goal: Option<Goal>,
    ) -> Option<(Answers, Option<Vec<Rule>>)> {
        let answers = |learned: Option<&LearnedParts>| {
            self.answers(&|fold| LearnedParts::applied_to(learned, &ordered(Some(fold))?, Some(fold)))
        };
        let found = |answers: &[Vec<StageAnswer>]| searched(&views(answers), rules, goal?);
        let after = answers(learned.as_ref())?;
        if let Some(rules) = found(&after) {
            return Some((after, Some(rules)));
        }
        // A gate is nothing without a threshold.
        learned.iter_mut().for_each(|learned| learned.gates.clear());
        let after = answers(learned.as_ref())?;
        let rules = found(&after);
        Some((after, rules))
    }

    /// How good the cascade of these answers is, by the rules of each fold.
    fn cascade(
        &self,
        answers: &[Vec<StageAnswer>],
        rules_of: &dyn Fn(usize) -> Option<Vec<Rule>>,
    ) -> Option<Cascade> {
        let by_fold: Vec<Vec<Rule>> = (0..FOLDS).map(rules_of).collect::<Option<_>>()?;
        let last: Vec<&StageAnswer> = answers
            .iter()
            .zip(&self.fold_of)
            .map(|(picture, &fold)| &picture[stops_at(picture, &by_fold[fold])])
            .collect();
        let scored: Vec<Scored<'_>> = last
            .iter()
            .zip(self.pictures)
            .map(|(answer, picture)| Scored { probabilities: &answer.probabilities, label: picture.label })
            .collect();
        let measured = measure(&scored, self.policy.labels().len(), &self.resampling)?;
        let ends: Vec<&[StageAnswer]> = last.into_iter().map(std::slice::from_ref).collect();
        Some(Cascade { measured, outcome: outcome(&ends, &[]) })
    }
}

#[cfg(test)]
mod tests;
