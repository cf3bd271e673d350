//! Cross-fitting of a policy part by part, each part evaluated on images that it was not fitted on.
//!
//! The images are assigned to folds, whole groups together. A part that is fitted on all folds but one is
//! evaluated on that one; the part that is written is then fitted on all of them. A part that is not
//! significantly better keeps its configured value. Three decisions are made once for all folds: which parts
//! are changed, the order of stages, and the calibrations under which weights are compared; but whether the
//! order changes is evaluated by orders that were chosen without the fold (`stage_order.rs`).

use concord_policy::{FusionMethod, Learned, Member, Policy, Weight};

use super::calibrate::{Calibrations, calibrated, calibrated_by};
use super::edit::confidence_as_written;
use super::folds::{PerFold, PolicyForFold};
use super::learned::{LearnedParts, Learning};
use super::solve::{folds, linear_pool_weights, log_pool_weights};
use super::stage_order::StageOrders;
use crate::evaluate::thresholds::{Objective, Outcome, Rule, StageAnswer, outcome, rules, search, stops_at};
use crate::evaluate::{
    Bootstrap, ClassificationMetrics, ERRORS_MIN, Estimate, LabeledExample, Prediction, log_loss, measure,
    stage_answer,
};

/// The number of folds; each is evaluated once.
pub(crate) const FOLDS: usize = 5;
/// The seed of the assignment to folds and of the resamples.
const SEED: u64 = 0;
const RESAMPLES: usize = 1000;

/// The images to fit on, and the group of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FitData<'a> {
    pub(crate) images: &'a [LabeledExample<'a>],
    pub(crate) groups: &'a [usize],
}

/// The options of a fit.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FitOptions {
    /// The objective of the stage order and the thresholds, which are fitted only if there is one.
    pub(crate) objective: Option<Objective>,
    pub(crate) learning: Learning,
}

/// A part of a policy that could be changed: its configured and its fitted value, and the change of the mean
/// NLL.
#[derive(Debug, Clone)]
pub(crate) struct Part<T> {
    pub(crate) now: T,
    pub(crate) fitted: T,
    /// The change of the mean NLL on images that it was not fitted on; below 0 is better.
    pub(crate) change: Estimate,
}

impl<T> Part<T> {
    /// Returns whether it is significantly better: the 95 % interval of the change lies below 0.
    pub(crate) fn is_gain(&self) -> bool {
        self.change.high < 0.0
    }
}

/// The answer of each stage for each image.
type Answers = Vec<Vec<StageAnswer>>;

/// A method of fusion with fixed weights.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fusion {
    pub(crate) method: FusionMethod,
    /// The weights in the order of the policy's members; their sum is 1.
    pub(crate) weights: Vec<f64>,
}

/// The result of a fit.
#[derive(Debug)]
pub(crate) struct Fit {
    /// The calibrations of each member, in the order of the policy.
    pub(crate) calibrations: Vec<Calibrations>,
    /// Both methods with fitted weights, compared with the configured fusion, under the calibrations to be
    /// written.
    pub(crate) fusions: Vec<Part<Fusion>>,
    /// The result of other stage orders.
    pub(crate) orders: StageOrders,
    /// The threshold of each stage but the last, on its confidence or on its correctness estimator, in the
    /// order to be written; a stage with `None` never ends the cascade. `None` as a whole if there is no
    /// objective, it cannot be reached, or there are too few errors.
    pub(crate) confidences: Option<Vec<Option<f64>>>,
    /// The networks on a backbone's feature; `None` if no model gave a feature with every image, or none are
    /// wanted.
    pub(crate) learned: Option<LearnedParts>,
    /// The number of errors of the configured first stage.
    pub(crate) first_stage_errors: usize,
    /// The configured cascade, and the one to be written, on images that it was not fitted on.
    pub(crate) before: CascadeMetrics,
    pub(crate) after: CascadeMetrics,
}

/// The metrics, accuracy and cost of a cascade.
#[derive(Debug)]
pub(crate) struct CascadeMetrics {
    pub(crate) metrics: ClassificationMetrics,
    pub(crate) outcome: Outcome,
}

impl Fit {
    /// Returns the fixed weights to be written: those that learned weights fall back to, or those of the
    /// better method that is significantly better than the configured one.
    pub(crate) fn fusion(&self) -> Option<&Fusion> {
        let fusions = self.fusions.iter();
        if self.weighs() {
            let mut fitted = fusions.map(|part| &part.fitted);
            return fitted.find(|fitted| fitted.method == FusionMethod::LogLinear);
        }
        let gains = fusions.filter(|part| part.is_gain());
        gains.min_by(|one, other| one.change.value.total_cmp(&other.change.value)).map(|part| &part.fitted)
    }

    /// Returns the method of fusion to be written; `None` if it does not change.
    pub(crate) fn method(&self) -> Option<FusionMethod> {
        let fixed = self.fusion().map(|fusion| fusion.method);
        if self.weighs() { Some(FusionMethod::Learned) } else { fixed }
    }

    fn weighs(&self) -> bool {
        self.learned.as_ref().is_some_and(LearnedParts::weighs)
    }

    /// Returns the networks to be written; `None` if none are used.
    pub(crate) fn networks(&self) -> Option<Learned> {
        self.learned.as_ref().and_then(LearnedParts::used)
    }

    /// Returns the configured place of the stage that is at `place` in the order to be written.
    pub(crate) fn place_of(&self, place: usize) -> usize {
        self.orders.gain().and_then(|order| order.get(place)).copied().unwrap_or(place)
    }

    /// Returns whether the threshold of this stage, in the order to be written, is that of its correctness
    /// estimator.
    pub(crate) fn has_estimator(&self, stage: usize) -> bool {
        self.learned.as_ref().is_some_and(|learned| learned.has_estimator(stage))
    }
}

/// Fits the parts of a policy. `whole` has the models that are off as well. `None` if there are fewer groups
/// than folds, or a vote is invalid.
pub(crate) fn fit(
    configured: &Policy,
    whole: &Policy,
    data: FitData<'_>,
    FitOptions { objective, learning }: FitOptions,
) -> Option<Fit> {
    // The configured networks may have been trained on these images.
    let policy = &configured.without_learned();
    let labels: Vec<usize> = data.images.iter().map(|image| image.label).collect();
    let fold_of = folds(data.groups, &labels, FOLDS, SEED);
    if (0..FOLDS).any(|fold| !fold_of.contains(&fold)) {
        return None;
    }
    let bootstrap = Bootstrap::new(data.groups, RESAMPLES, SEED);
    let cross_fit = CrossFit { policy, images: data.images, fold_of, bootstrap };
    let calibrations = cross_fit.calibrations()?;
    let fusions = cross_fit.fusions(&calibrated_by(policy, &calibrations, None))?;
    let before = cross_fit.answers(&|_| Some(configured.clone()))?;
    let rules_before = rules(configured);
    let first_stage_errors = before.iter().filter(|image| !image[0].is_right).count();
    let has_errors = first_stage_errors >= ERRORS_MIN;
    let objective = objective.filter(|_| has_errors);
    let plain = PerFold::of(|without| cross_fit.refitted(&calibrations, &fusions, without))?;
    let mut learned = match learning {
        Learning::Never => None,
        Learning::Auto | Learning::Always => cross_fit.learn(&plain, learning, has_errors),
    };
    let weighted = |fold| LearnedParts::applied_to(learned.as_ref(), plain.without(Some(fold))?, Some(fold));
    // An order that asks the backbone later would have stages before it whose confidences lack the learned
    // weights.
    let read = learned.as_ref().filter(|learned| learned.weighs()).map(|learned| &*learned.backbone);
    let orders = objective
        .map_or(Some(StageOrders::None), |objective| cross_fit.orders(whole, &weighted, read, objective))?;
    let ordered = |without| orders.applied_to(plain.without(without)?);
    let policy_in_order = orders.applied_to(policy)?;
    let rules = rules(&policy_in_order);
    if let Some(learned) = learned.as_mut().filter(|_| objective.is_some()) {
        learned.estimators = cross_fit.estimators(learned, &ordered, &policy_in_order, learning);
    }
    let (after, found) = cross_fit.with_thresholds(&mut learned, &ordered, &rules, objective)?;
    let searched_for = objective.filter(|_| found.is_some());
    Some(Fit {
        first_stage_errors,
        before: cross_fit.cascade(&before, &|_| Some(rules_before.clone()))?,
        after: cross_fit
            .cascade(&after, &|fold| Some(cross_fit.rules_without(fold, &after, &rules, searched_for)))?,
        confidences: found.map(|rules| rules.iter().map(Rule::finite_confidence).collect()),
        calibrations,
        fusions,
        orders,
        learned,
    })
}

/// Returns the best rules for an objective, with thresholds rounded as they are written; `None` if none reach
/// it.
pub(super) fn searched(images: &[&[StageAnswer]], rules: &[Rule], objective: Objective) -> Option<Vec<Rule>> {
    let mut found = search(images, rules, objective)?;
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

/// Returns the method and the normalized fixed weights of a policy.
pub(super) fn fusion_of(policy: &Policy) -> Fusion {
    let weights: Vec<f64> = policy.members().map(|member| member.weight().get()).collect();
    let sum: f64 = weights.iter().sum();
    Fusion { method: policy.fusion(), weights: weights.iter().map(|weight| weight / sum).collect() }
}

/// Returns, for each stage, the policy that asks all models up to it at once.
pub(super) fn up_to_each_stage(policy: &Policy) -> Option<Vec<Policy>> {
    (0..policy.stages().len()).map(|stage| policy.as_far_as(stage)).collect()
}

/// A policy to be fitted, with the images and the folds that it is evaluated by.
pub(super) struct CrossFit<'a> {
    pub(super) policy: &'a Policy,
    pub(super) images: &'a [LabeledExample<'a>],
    pub(super) fold_of: Vec<usize>,
    pub(super) bootstrap: Bootstrap,
}

impl CrossFit<'_> {
    /// Returns the images of all folds but this one; for `None`, all images.
    pub(super) fn outside_fold(&self, without: Option<usize>) -> impl Iterator<Item = &LabeledExample<'_>> {
        let image_folds = self.images.iter().zip(&self.fold_of);
        image_folds.filter(move |(_, fold)| Some(**fold) != without).map(|(image, _)| image)
    }

    /// Returns the answers for the images of all folds but this one.
    pub(super) fn without<'b>(&self, fold: usize, answers: &'b [Vec<StageAnswer>]) -> Vec<&'b [StageAnswer]> {
        let others = answers.iter().zip(&self.fold_of).filter(|(_, of)| **of != fold);
        others.map(|(answers, _)| answers.as_slice()).collect()
    }

    /// Returns the rules of a fold, searched on the answers of the others; `rules` if there is no objective
    /// or none reach it.
    fn rules_without(
        &self,
        fold: usize,
        answers: &[Vec<StageAnswer>],
        rules: &[Rule],
        objective: Option<Objective>,
    ) -> Vec<Rule> {
        let found = objective.and_then(|objective| searched(&self.without(fold, answers), rules, objective));
        found.unwrap_or_else(|| rules.to_vec())
    }

    /// Fits weights by this method on all folds but one, under the calibrations of `policy`.
    fn weights(&self, policy: &Policy, method: FusionMethod, without: Option<usize>) -> Option<Vec<f64>> {
        let images: Vec<&LabeledExample<'_>> = self.outside_fold(without).collect();
        let labels: Vec<usize> = images.iter().map(|image| image.label).collect();
        let of_member = |(index, member): (usize, &Member)| {
            let of = |image: &&LabeledExample<'_>| calibrated(image, index, member.calibration());
            images.iter().map(of).collect::<Option<Vec<_>>>()
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
            FusionMethod::Linear => linear_pool_weights(&borrowed, &labels),
            FusionMethod::LogLinear => log_pool_weights(&borrowed, &labels),
            // Learned weights differ from image to image.
            FusionMethod::Learned => None,
        }
    }

    /// Fits the weights of both methods, and evaluates them, under the calibrations of `policy`.
    fn fusions(&self, policy: &Policy) -> Option<Vec<Part<Fusion>>> {
        FusionMethod::FIXED.into_iter().map(|method| self.fusion_part(policy, method)).collect()
    }

    /// Fits the weights of one method on all folds but each and on all images, and compares them with the
    /// configured fusion.
    fn fusion_part(&self, policy: &Policy, method: FusionMethod) -> Option<Part<Fusion>> {
        let fitted = |without| Some(Fusion { method, weights: self.weights(policy, method, without)? });
        let by_fold: Vec<Policy> =
            (0..FOLDS).map(|fold| Some(set_fusion(policy, &fitted(Some(fold))?))).collect::<Option<_>>()?;
        let mut changes = Vec::with_capacity(self.images.len());
        for (image, &fold) in self.images.iter().zip(&self.fold_of) {
            changes.push(self.fused_loss(&by_fold[fold], image)? - self.fused_loss(policy, image)?);
        }
        let change = self.bootstrap.mean(&changes);
        Some(Part { now: fusion_of(policy), fitted: fitted(None)?, change })
    }

    /// Returns the NLL of the fusion of all members for an image.
    fn fused_loss(&self, policy: &Policy, image: &LabeledExample<'_>) -> Option<f64> {
        let answer = stage_answer(&policy.all_at_once(policy.fusion()), self.policy, image)?;
        Some(log_loss(&answer.probabilities, image.label))
    }

    /// Returns the policy with log-linear fusion by weights that are fitted on all folds but one.
    pub(super) fn log_linear(&self, policy: &Policy, without: Option<usize>) -> Option<Policy> {
        let method = FusionMethod::LogLinear;
        Some(set_fusion(policy, &Fusion { method, weights: self.weights(policy, method, without)? }))
    }

    /// Returns the policy with those parts that are significantly better, fitted on all folds but one.
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

    /// Returns the answers of each stage for each image, by the policy of the image's fold.
    fn answers(&self, policy_of: &dyn Fn(usize) -> Option<Policy>) -> Option<Answers> {
        let by_fold: Vec<Vec<Policy>> =
            (0..FOLDS).map(|fold| up_to_each_stage(&policy_of(fold)?)).collect::<Option<_>>()?;
        let of_image = |(image, &fold): (&LabeledExample<'_>, &usize)| {
            by_fold[fold]
                .iter()
                .map(|policy| stage_answer(policy, self.policy, image))
                .collect::<Option<Vec<_>>>()
        };
        self.images.iter().zip(&self.fold_of).map(of_image).collect()
    }

    /// Returns the answers of the stages with the learned networks, and rules for the objective. If no rules
    /// reach it, the correctness estimators are removed, because a correctness estimator is nothing without a
    /// threshold.
    fn with_thresholds(
        &self,
        learned: &mut Option<LearnedParts>,
        ordered: PolicyForFold<'_>,
        rules: &[Rule],
        objective: Option<Objective>,
    ) -> Option<(Answers, Option<Vec<Rule>>)> {
        let answers = |learned: Option<&LearnedParts>| {
            self.answers(&|fold| LearnedParts::applied_to(learned, &ordered(Some(fold))?, Some(fold)))
        };
        let found = |answers: &[Vec<StageAnswer>]| searched(&views(answers), rules, objective?);
        let after = answers(learned.as_ref())?;
        if let Some(rules) = found(&after) {
            return Some((after, Some(rules)));
        }
        learned.iter_mut().for_each(|learned| learned.estimators.clear());
        let after = answers(learned.as_ref())?;
        let rules = found(&after);
        Some((after, rules))
    }

    /// Evaluates the cascade of these answers, by the rules of each fold.
    fn cascade(
        &self,
        answers: &[Vec<StageAnswer>],
        rules_of: &dyn Fn(usize) -> Option<Vec<Rule>>,
    ) -> Option<CascadeMetrics> {
        let by_fold: Vec<Vec<Rule>> = (0..FOLDS).map(rules_of).collect::<Option<_>>()?;
        let last: Vec<&StageAnswer> = answers
            .iter()
            .zip(&self.fold_of)
            .map(|(image, &fold)| &image[stops_at(image, &by_fold[fold])])
            .collect();
        let predictions: Vec<Prediction<'_>> = last
            .iter()
            .zip(self.images)
            .map(|(answer, image)| Prediction { probabilities: &answer.probabilities, label: image.label })
            .collect();
        let metrics = measure(&predictions, self.policy.labels().len(), &self.bootstrap)?;
        let ends: Vec<&[StageAnswer]> = last.into_iter().map(std::slice::from_ref).collect();
        Some(CascadeMetrics { metrics, outcome: outcome(&ends, &[]) })
    }
}

#[cfg(test)]
mod tests;
