//! Trains networks on a backbone's feature of an image: weights and temperatures for each image, and
//! correctness estimators.
//!
//! Each network is trained on all folds but one, one of which only serves for early stopping, and is
//! evaluated on the one left out. A network that does not beat the simple part that it would replace (fixed
//! weights or plain confidence) is not used unless that is requested ([`Learning`]); nor is one that was
//! trained on too few errors.

use std::sync::Arc;

use concord_policy::{CorrectnessEstimator, FusionMethod, Learned, Member, Network, Policy, Probability};

use super::calibrate::calibrated;
use super::cross_fit::{CrossFit, FOLDS, fusion_of, up_to_each_stage};
use super::folds::{PerFold, PolicyForFold};
use super::train_network::{Example, Objective, Training, train};
use crate::evaluate::{ERRORS_MIN, Estimate, LabeledExample, Ranking, answer, log_loss, stage_answer};

/// The choice of when learned networks are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Learning {
    /// Use those that are significantly better (95 % interval above 0) than the simple part that they
    /// replace, if there are at least 50 errors to learn from
    #[default]
    Auto,
    /// Use all that can be learned, whether they are better or not, to evaluate them on other images
    Always,
    /// Learn none, which is faster
    Never,
}

/// The network that gives weights and temperatures for each image.
#[derive(Debug)]
pub(crate) struct WeightsPart {
    networks: PerFold<Network>,
    /// The policy with the fixed weights that training starts from and that serving falls back to: those of
    /// log-linear fusion.
    fixed: PerFold<Policy>,
    /// The change of the mean NLL of the stages' answers against fixed weights, on images that neither was
    /// fitted on; below 0 is better.
    pub(crate) change: Estimate,
    pub(crate) is_used: bool,
}

impl WeightsPart {
    /// Returns whether they are significantly better: the 95 % interval of the change lies below 0.
    pub(crate) fn is_gain(&self) -> bool {
        self.change.high < 0.0
    }
}

/// Returns `policy` with the weights of `fixed` and learned fusion.
fn fused(policy: &Policy, fixed: &Policy) -> Policy {
    let of_fixed = |member: &Member| fixed.members().find(|other| other.model() == member.model());
    policy.with_weights(FusionMethod::Learned, |member| {
        of_fixed(member).map_or(member.weight(), Member::weight)
    })
}

/// The correctness estimator of one stage.
#[derive(Debug)]
pub(crate) struct EstimatorPart {
    pub(crate) stage: usize,
    models: Vec<Arc<str>>,
    networks: PerFold<Network>,
    /// The number of errors of the stage.
    pub(crate) errors: usize,
    /// The areas under the ROC curve for "the answer is wrong", by plain confidence and by the correctness
    /// estimator, on images that it was not fitted on.
    pub(crate) by_confidence: f64,
    pub(crate) by_estimator: f64,
    /// The second area minus the first; above 0 is better.
    pub(crate) change: Estimate,
    pub(crate) is_used: bool,
}

impl EstimatorPart {
    /// Returns whether it is significantly better: the 95 % interval of the change lies above 0, with enough
    /// errors to tell.
    pub(crate) fn is_gain(&self) -> bool {
        self.errors >= ERRORS_MIN && self.change.low > 0.0
    }
}

/// The networks that were trained on one backbone's feature.
#[derive(Debug)]
pub(crate) struct LearnedParts {
    pub(crate) backbone: Arc<str>,
    members: Vec<Arc<str>>,
    pub(crate) weights: Option<WeightsPart>,
    /// The correctness estimators of the stages, other than the last, that have an accept rule and make an
    /// error.
    pub(crate) estimators: Vec<EstimatorPart>,
}

impl LearnedParts {
    /// Returns whether this stage is accepted by its correctness estimator.
    pub(super) fn has_estimator(&self, stage: usize) -> bool {
        self.estimators.iter().any(|part| part.stage == stage && part.is_used)
    }

    /// Returns whether votes are fused by learned weights.
    pub(super) fn weighs(&self) -> bool {
        self.weights.as_ref().is_some_and(|part| part.is_used)
    }

    /// Returns the networks to be written, trained on all images; `None` if none are used.
    pub(super) fn used(&self) -> Option<Learned> {
        self.learned(None).filter(|learned| !learned.is_empty())
    }

    /// Returns the networks in use, trained without this fold.
    fn learned(&self, without: Option<usize>) -> Option<Learned> {
        let mut learned = Learned::new(Arc::clone(&self.backbone));
        if let Some(part) = self.weights.as_ref().filter(|part| part.is_used) {
            learned = learned.with_weights(self.members.clone(), part.networks.without(without)?.clone());
        }
        for part in self.estimators.iter().filter(|part| part.is_used) {
            learned = learned.with_estimator(&part.models, part.networks.without(without)?.clone());
        }
        Some(learned)
    }

    /// Returns `policy` with the networks of `parts`, if there are any.
    pub(super) fn applied_to(
        parts: Option<&Self>,
        policy: &Policy,
        without: Option<usize>,
    ) -> Option<Policy> {
        parts.map_or_else(|| Some(policy.clone()), |parts| parts.applied(policy, without))
    }

    /// Returns `policy` with the networks trained without this fold.
    pub(super) fn applied(&self, policy: &Policy, without: Option<usize>) -> Option<Policy> {
        let learned = self.learned(without)?;
        let policy = match self.weights.as_ref().filter(|part| part.is_used) {
            Some(part) => fused(policy, part.fixed.without(without)?),
            None => policy.clone(),
        };
        // The configured confidence is the correctness estimator's threshold until one has been found.
        let estimators =
            |stage: usize, confidence: Probability| self.has_estimator(stage).then_some(confidence);
        let policy = policy.with_correctness(estimators);
        Some(if learned.is_empty() { policy } else { policy.with_learned(Arc::new(learned)) })
    }
}

impl CrossFit<'_> {
    /// Trains all networks except correctness estimators; `plain` has the policies without networks. `None`
    /// if no model gave a feature with every image.
    ///
    /// `has_errors` is whether the first stage makes enough errors to learn from: without any, more
    /// confidence is always better.
    pub(super) fn learn(
        &self,
        plain: &PerFold<Policy>,
        learning: Learning,
        has_errors: bool,
    ) -> Option<LearnedParts> {
        let backbone = self.backbone()?;
        let members: Vec<Arc<str>> = self.policy.members().map(|member| Arc::clone(member.model())).collect();
        let is_used = |is_gain| learning == Learning::Always || (has_errors && is_gain);
        let weights = self.weights_part(plain, backbone, is_used);
        let name = Arc::clone(members.get(backbone)?);
        Some(LearnedParts { backbone: name, members, weights, estimators: Vec::new() })
    }

    /// Trains the correctness estimators of `policy`; its stages, and those of `plain`, are in the order to
    /// be written.
    pub(super) fn estimators(
        &self,
        parts: &LearnedParts,
        plain: PolicyForFold<'_>,
        policy: &Policy,
        learning: Learning,
    ) -> Vec<EstimatorPart> {
        let Some(backbone) = self.backbone() else { return Vec::new() };
        let weighted = |fold| parts.applied(&plain(fold)?, fold);
        let stages = 0..policy.stages().len().saturating_sub(1);
        stages.filter_map(|stage| self.estimator_part(&weighted, backbone, policy, stage, learning)).collect()
    }

    /// Returns the first member that gave a feature with every image.
    fn backbone(&self) -> Option<usize> {
        let has_all = |member: &usize| {
            self.images.iter().all(|image| image.votes[*member].output.evidence.feature.is_some())
        };
        (0..self.policy.members().count()).find(has_all)
    }

    fn feature_width(&self, backbone: usize) -> Option<usize> {
        Some(self.images.first()?.votes.get(backbone)?.output.evidence.feature.as_ref()?.len())
    }

    /// Returns the indices of the images of all folds but this one, each with `true` if it only serves for
    /// early stopping.
    fn learned_on(&self, without: Option<usize>) -> impl Iterator<Item = (usize, bool)> {
        let stops = without.map_or(0, |fold| (fold + 1) % FOLDS);
        let folds = self.fold_of.iter().enumerate().filter(move |(_, fold)| Some(**fold) != without);
        folds.map(move |(image, fold)| (image, *fold == stops))
    }

    /// Trains and evaluates the weights; `is_used` decides by whether they are significantly better. `None`
    /// if there is too little to learn from.
    fn weights_part(
        &self,
        plain: &PerFold<Policy>,
        backbone: usize,
        is_used: impl Fn(bool) -> bool,
    ) -> Option<WeightsPart> {
        let fixed = PerFold::of(|without| self.log_linear(plain.without(without)?, without))?;
        let networks =
            PerFold::of(|without| self.weights_network(fixed.without(without)?, backbone, without))?;
        let names: Vec<Arc<str>> = self.policy.members().map(|member| Arc::clone(member.model())).collect();
        let name = names.get(backbone)?;
        let by_fold: Vec<[Vec<Policy>; 2]> = (0..FOLDS)
            .map(|fold| {
                let network = networks.without(Some(fold))?.clone();
                let learned = Learned::new(Arc::clone(name)).with_weights(names.clone(), network);
                let plain = plain.without(Some(fold))?;
                let learned = fused(plain, fixed.without(Some(fold))?).with_learned(Arc::new(learned));
                Some([up_to_each_stage(plain)?, up_to_each_stage(&learned)?])
            })
            .collect::<Option<_>>()?;
        let change = |(image, &fold): (&LabeledExample<'_>, &usize)| {
            let [plain, learned] = &by_fold[fold];
            Some(self.mean_loss(learned, image)? - self.mean_loss(plain, image)?)
        };
        let changes: Vec<f64> = self.images.iter().zip(&self.fold_of).map(change).collect::<Option<_>>()?;
        let change = self.bootstrap.mean(&changes);
        let mut part = WeightsPart { networks, fixed, change, is_used: false };
        part.is_used = is_used(part.is_gain());
        Some(part)
    }

    /// Returns the mean NLL of the answers of these policies for an image.
    fn mean_loss(&self, policies: &[Policy], image: &LabeledExample<'_>) -> Option<f64> {
        let loss =
            |policy| Some(log_loss(&stage_answer(policy, self.policy, image)?.probabilities, image.label));
        let losses: Vec<f64> = policies.iter().map(loss).collect::<Option<_>>()?;
        Some(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    fn weights_network(&self, fixed: &Policy, backbone: usize, without: Option<usize>) -> Option<Network> {
        let (mut examples, mut truths, mut log_probabilities) = (Vec::new(), Vec::new(), Vec::new());
        for (index, validates) in self.learned_on(without) {
            let image = &self.images[index];
            examples.push(Example {
                input: image.votes[backbone].output.evidence.feature.as_deref()?,
                validates,
            });
            truths.push(image.label);
            for (member, of_policy) in fixed.members().enumerate() {
                let probabilities = calibrated(image, member, of_policy.calibration())?;
                log_probabilities.extend(probabilities.iter().map(|p| p.max(f64::MIN_POSITIVE).ln() as f32));
            }
        }
        let stages = fixed.stages().iter();
        let answers: Vec<usize> = stages
            .scan(0, |models, stage| {
                *models += stage.members().len();
                Some(*models)
            })
            .filter(|models| *models > backbone)
            .collect();
        let weights = fusion_of(fixed).weights;
        let objective = Objective::Fusion {
            log_probabilities: &log_probabilities,
            truths: &truths,
            fixed: &weights,
            answers: &answers,
        };
        trained(&examples, objective, self.feature_width(backbone)?)
    }

    /// Trains and evaluates the correctness estimator of a stage; `None` if the stage has no accept rule,
    /// comes before the backbone, or makes no error.
    fn estimator_part(
        &self,
        weighted: PolicyForFold<'_>,
        backbone: usize,
        policy: &Policy,
        stage: usize,
        learning: Learning,
    ) -> Option<EstimatorPart> {
        policy.stages().get(stage)?.accept()?;
        let models: Vec<Arc<str>> =
            policy.as_far_as(stage)?.members().map(|member| Arc::clone(member.model())).collect();
        let backbone_name = self.policy.members().nth(backbone)?.model();
        if !models.contains(backbone_name) {
            return None;
        }
        let answers = PerFold::of(|without| self.estimated(&weighted(without)?, backbone, stage))?;
        let networks =
            PerFold::of(|without| self.estimator_network(answers.without(without)?, backbone, without))?;
        // Each image is evaluated by the policy and the correctness estimator that were not fitted on it.
        let (mut by_confidence, mut by_estimator) = (Vec::new(), Vec::new());
        for (index, &fold) in self.fold_of.iter().enumerate() {
            let EstimatorExample { input, confidence, is_right } = answers.without(Some(fold))?.get(index)?;
            let log_odds = *networks.without(Some(fold))?.forward(input)?.first()?;
            by_confidence.push((-confidence, !is_right));
            by_estimator.push((-f64::from(log_odds), !is_right));
        }
        let errors = by_estimator.iter().filter(|(_, is_wrong)| *is_wrong).count();
        let [confidence, correctness] =
            [by_confidence, by_estimator].map(|scores| Ranking::new(scores.into_iter()));
        let each_once = vec![1; self.images.len()];
        let difference = |weights: &[u16]| Some(correctness.auroc(weights)? - confidence.auroc(weights)?);
        let (low, high) = self.bootstrap.interval(difference);
        let mut part = EstimatorPart {
            stage,
            models,
            networks,
            errors,
            by_confidence: confidence.auroc(&each_once)?,
            by_estimator: correctness.auroc(&each_once)?,
            change: Estimate { value: difference(&each_once)?, low, high },
            is_used: false,
        };
        part.is_used = part.is_gain() || (learning == Learning::Always && errors >= ERRORS_MIN);
        Some(part)
    }

    /// Trains a correctness estimator on all folds but one; `None` if there is too little to learn from.
    fn estimator_network(
        &self,
        answers: &[EstimatorExample],
        backbone: usize,
        without: Option<usize>,
    ) -> Option<Network> {
        let rows: Vec<(&EstimatorExample, bool)> =
            self.learned_on(without).map(|(index, validates)| (&answers[index], validates)).collect();
        let is_right: Vec<bool> = rows.iter().map(|(answer, _)| answer.is_right).collect();
        let examples: Vec<Example<'_>> = rows
            .iter()
            .map(|(answer, validates)| Example { input: &answer.input, validates: *validates })
            .collect();
        trained(&examples, Objective::Truth(&is_right), self.feature_width(backbone)?)
    }

    /// Returns the answer of this stage for each image, as the correctness estimator's input.
    fn estimated(&self, policy: &Policy, backbone: usize, stage: usize) -> Option<Vec<EstimatorExample>> {
        let policy = policy.as_far_as(stage)?;
        let estimated = |image: &LabeledExample<'_>| {
            let answer = answer(&policy, self.policy, image)?;
            let feature = image.votes[backbone].output.evidence.feature.as_deref()?;
            Some(EstimatorExample {
                input: CorrectnessEstimator::input(&answer.distribution, answer.agreement, feature),
                confidence: answer.confidence().get(),
                is_right: answer.label() == image.label,
            })
        };
        self.images.iter().map(estimated).collect()
    }
}

/// A stage's answer as the input of a correctness estimator.
struct EstimatorExample {
    input: Vec<f32>,
    confidence: f64,
    is_right: bool,
}

/// The least width of the hidden layer, which is a quarter as wide as the feature (1024 → 256).
const HIDDEN_MIN: usize = 32;

/// Trains a network; `None` if there is too little to learn from.
fn trained(examples: &[Example<'_>], objective: Objective<'_>, feature_width: usize) -> Option<Network> {
    let training = Training { hidden: (feature_width / 4).max(HIDDEN_MIN), ..Training::default() };
    match train(examples, objective, training) {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::warn!(%error, "a network could not be trained");
            None
        }
    }
}

#[cfg(test)]
mod tests;
