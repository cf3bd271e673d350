//! Networks on what a backbone made of a picture: weights and temperatures for each image, and gates.
//!
//! Each is learned on all folds but one, of which one more only tells when to stop, and is judged on the one left out. What
//! does not beat the simple part that it would replace, fixed weights or plain confidence, is not used unless that is asked for
//! ([`Learning`]); nor is what was learned from too few errors.

use std::sync::Arc;

use concord_policy::{FusionMethod, Learned, Member, Network, Policy, Probability, gate_input};

use super::by_fold::{ByFold, PolicyOf};
use super::calibrate::calibrated;
use super::cross::{FOLDS, Work, fusion_of, up_to_each_stage};
use super::train_network::{Example, Goal, Training, train};
use crate::evaluate::{ERRORS_MIN, Figure, Judged, Ranking, answer, log_loss, stage_answer};

/// Whether what was learned is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Learning {
    /// Where it is better for sure than the simple part that it replaces, and there are at least 50 errors to learn from
    #[default]
    Auto,
    /// Wherever there is enough to learn from, be it better or not: to measure it on other pictures
    Always,
    /// Nowhere, and nothing is learned: that is faster
    Never,
}

/// Weights and temperatures for each image.
#[derive(Debug)]
pub(crate) struct WeightsPart {
    networks: ByFold<Network>,
    /// With the fixed weights that they start from, and that count where they cannot be read: those of log-linear fusion.
    fixed: ByFold<Policy>,
    /// Of the mean NLL of what the stages answer, beside fixed weights, on pictures that neither was fitted on: below 0 is
    /// better.
    pub(crate) change: Figure,
    pub(crate) is_used: bool,
}

impl WeightsPart {
    /// Whether they are better for sure.
    pub(crate) fn is_gain(&self) -> bool {
        self.change.high < 0.0
    }
}

/// `policy` with the weights of `fixed`, fused by what was learned.
fn fused(policy: &Policy, fixed: &Policy) -> Policy {
    let of_fixed = |member: &Member| fixed.members().find(|other| other.model() == member.model());
    policy.with_weights(FusionMethod::Learned, |member| {
        of_fixed(member).map_or(member.weight(), Member::weight)
    })
}

/// The gate of one stage.
#[derive(Debug)]
pub(crate) struct GatePart {
    pub(crate) stage: usize,
    models: Vec<Arc<str>>,
    networks: ByFold<Network>,
    /// The stage's errors.
    pub(crate) errors: usize,
    /// The area under the ROC curve for "the answer is wrong", by plain confidence and by the gate, on pictures that it was
    /// not fitted on.
    pub(crate) by_confidence: f64,
    pub(crate) by_gate: f64,
    /// By how much the second is larger: above 0 is better.
    pub(crate) change: Figure,
    pub(crate) is_used: bool,
}

impl GatePart {
    /// Whether there are errors enough to say so, and it is better for sure.
    pub(crate) fn is_gain(&self) -> bool {
        self.errors >= ERRORS_MIN && self.change.low > 0.0
    }
}

/// What was learned on one backbone's feature.
#[derive(Debug)]
pub(crate) struct LearnedParts {
    pub(crate) backbone: Arc<str>,
    members: Vec<Arc<str>>,
    pub(crate) weights: Option<WeightsPart>,
    /// Of stages but the last that have an accept rule and make an error.
    pub(crate) gates: Vec<GatePart>,
}

impl LearnedParts {
    /// Whether this stage is to be accepted by its gate.
    pub(super) fn gates_stage(&self, stage: usize) -> bool {
        self.gates.iter().any(|part| part.stage == stage && part.is_used)
    }

    /// Whether votes are to be fused by it.
    pub(super) fn weighs(&self) -> bool {
        self.weights.as_ref().is_some_and(|part| part.is_used)
    }

    /// What is to be written, of all pictures; `None` where nothing is used.
    pub(super) fn used(&self) -> Option<Learned> {
        self.learned(None).filter(|learned| !learned.is_empty())
    }

    /// Of all folds but this one, the networks that are used.
    fn learned(&self, without: Option<usize>) -> Option<Learned> {
        let mut learned = Learned::of(Arc::clone(&self.backbone));
        if let Some(part) = self.weights.as_ref().filter(|part| part.is_used) {
            learned = learned.with_weights(self.members.clone(), part.networks.without(without)?.clone());
        }
        for part in self.gates.iter().filter(|part| part.is_used) {
            learned = learned.with_gate(&part.models, part.networks.without(without)?.clone());
        }
        Some(learned)
    }

    /// `policy` with them, where there are any.
    pub(super) fn applied_to(
        parts: Option<&Self>,
        policy: &Policy,
        without: Option<usize>,
    ) -> Option<Policy> {
        parts.map_or_else(|| Some(policy.clone()), |parts| parts.applied(policy, without))
    }

    /// `policy` with them, as pictures of this fold are judged.
    pub(super) fn applied(&self, policy: &Policy, without: Option<usize>) -> Option<Policy> {
        let learned = self.learned(without)?;
        let policy = match self.weights.as_ref().filter(|part| part.is_used) {
            Some(part) => fused(policy, part.fixed.without(without)?),
            None => policy.clone(),
        };
        // What it asks now counts until a threshold has been found.
        let gates = |stage: usize, confidence: Probability| self.gates_stage(stage).then_some(confidence);
        let policy = policy.with_gates(gates);
        Some(if learned.is_empty() { policy } else { policy.with_learned(Arc::new(learned)) })
    }
}

impl Work<'_> {
    /// What can be learned beside `plain`, the policy of a fold without networks, but for gates. `None` where no model gave a
    /// feature with every picture.
    ///
    /// `has_errors` says whether the first stage makes enough of them to learn from: without any, being surer is always better.
    pub(super) fn learn(
        &self,
        plain: &ByFold<Policy>,
        learning: Learning,
        has_errors: bool,
    ) -> Option<LearnedParts> {
        let backbone = self.backbone()?;
        let members: Vec<Arc<str>> = self.policy.members().map(|member| Arc::clone(member.model())).collect();
        let is_used = |is_gain| learning == Learning::Always || (has_errors && is_gain);
        let weights = self.weights_part(plain, backbone, is_used);
        let name = Arc::clone(members.get(backbone)?);
        Some(LearnedParts { backbone: name, members, weights, gates: Vec::new() })
    }

    /// The gates of `policy`, whose stages are in the order that is to be used, as are those of `plain`.
    pub(super) fn gates(
        &self,
        parts: &LearnedParts,
        plain: PolicyOf<'_>,
        policy: &Policy,
        learning: Learning,
    ) -> Vec<GatePart> {
        let Some(backbone) = self.backbone() else { return Vec::new() };
        let weighted = |fold| parts.applied(&plain(fold)?, fold);
        let stages = 0..policy.stages().len().saturating_sub(1);
        stages.filter_map(|stage| self.gate_part(&weighted, backbone, policy, stage, learning)).collect()
    }

    /// The first member that gave a feature with every picture.
    fn backbone(&self) -> Option<usize> {
        let has_all =
            |member: &usize| self.pictures.iter().all(|picture| picture.votes[*member].feature.is_some());
        (0..self.policy.members().count()).find(has_all)
    }

    fn feature_width(&self, backbone: usize) -> Option<usize> {
        Some(self.pictures.first()?.votes.get(backbone)?.feature.as_ref()?.len())
    }

    /// The pictures of all folds but this one, each with whether it only tells when to stop.
    fn learned_on(&self, without: Option<usize>) -> impl Iterator<Item = (usize, bool)> {
        let stops = without.map_or(0, |fold| (fold + 1) % FOLDS);
        let folds = self.fold_of.iter().enumerate().filter(move |(_, fold)| Some(**fold) != without);
        folds.map(move |(picture, fold)| (picture, *fold == stops))
    }

    /// `is_used` says whether they are, by whether they are better for sure. `None` where there is too little to learn from.
    fn weights_part(
        &self,
        plain: &ByFold<Policy>,
        backbone: usize,
        is_used: impl Fn(bool) -> bool,
    ) -> Option<WeightsPart> {
        let fixed = ByFold::of(|without| self.log_linear(plain.without(without)?, without))?;
        let networks =
            ByFold::of(|without| self.weights_network(fixed.without(without)?, backbone, without))?;
        let names: Vec<Arc<str>> = self.policy.members().map(|member| Arc::clone(member.model())).collect();
        let name = names.get(backbone)?;
        let by_fold: Vec<[Vec<Policy>; 2]> = (0..FOLDS)
            .map(|fold| {
                let network = networks.without(Some(fold))?.clone();
                let learned = Learned::of(Arc::clone(name)).with_weights(names.clone(), network);
                let plain = plain.without(Some(fold))?;
                let learned = fused(plain, fixed.without(Some(fold))?).with_learned(Arc::new(learned));
                Some([up_to_each_stage(plain)?, up_to_each_stage(&learned)?])
            })
            .collect::<Option<_>>()?;
        let change = |(picture, &fold): (&Judged<'_>, &usize)| {
            let [plain, learned] = &by_fold[fold];
            Some(self.mean_loss(learned, picture)? - self.mean_loss(plain, picture)?)
        };
        let changes: Vec<f64> = self.pictures.iter().zip(&self.fold_of).map(change).collect::<Option<_>>()?;
        let change = self.resampling.mean(&changes);
        let mut part = WeightsPart { networks, fixed, change, is_used: false };
        part.is_used = is_used(part.is_gain());
        Some(part)
    }

    /// Of what these policies answer.
    fn mean_loss(&self, policies: &[Policy], picture: &Judged<'_>) -> Option<f64> {
        let loss = |policy| {
            Some(log_loss(&stage_answer(policy, self.policy, picture)?.probabilities, picture.label))
        };
        let losses: Vec<f64> = policies.iter().map(loss).collect::<Option<_>>()?;
        Some(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    fn weights_network(&self, fixed: &Policy, backbone: usize, without: Option<usize>) -> Option<Network> {
        let (mut examples, mut truths, mut log_probabilities) = (Vec::new(), Vec::new(), Vec::new());
        for (index, validates) in self.learned_on(without) {
            let picture = &self.pictures[index];
            examples.push(Example { input: picture.votes[backbone].feature.as_deref()?, validates });
            truths.push(picture.label);
            for (member, of_policy) in fixed.members().enumerate() {
                let probabilities = calibrated(picture, member, of_policy.calibration())?;
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
        let goal = Goal::Fusion {
            log_probabilities: &log_probabilities,
            truths: &truths,
            fixed: &weights,
            answers: &answers,
        };
        trained(&examples, goal, self.feature_width(backbone)?)
    }

    /// `None` where the stage has no accept rule, comes before the backbone, or makes no error at all.
    fn gate_part(
        &self,
        weighted: PolicyOf<'_>,
        backbone: usize,
        policy: &Policy,
        stage: usize,
        learning: Learning,
    ) -> Option<GatePart> {
        policy.stages().get(stage)?.accept()?;
        let models: Vec<Arc<str>> =
            policy.as_far_as(stage)?.members().map(|member| Arc::clone(member.model())).collect();
        let backbone_name = self.policy.members().nth(backbone)?.model();
        if !models.contains(backbone_name) {
            return None;
        }
        let answers = ByFold::of(|without| self.gated(&weighted(without)?, backbone, stage))?;
        let networks = ByFold::of(|without| {
            let answers = answers.without(without)?;
            let chosen: Vec<(&Gated, bool)> =
                self.learned_on(without).map(|(index, validates)| (&answers[index], validates)).collect();
            let is_right: Vec<bool> = chosen.iter().map(|(answer, _)| answer.is_right).collect();
            let examples: Vec<Example<'_>> = chosen
                .iter()
                .map(|(answer, validates)| Example { input: &answer.input, validates: *validates })
                .collect();
            trained(&examples, Goal::Truth(&is_right), self.feature_width(backbone)?)
        })?;
        // Each picture by the policy and the gate that did not see it.
        let (mut by_confidence, mut by_gate) = (Vec::new(), Vec::new());
        for (index, &fold) in self.fold_of.iter().enumerate() {
            let Gated { input, confidence, is_right } = answers.without(Some(fold))?.get(index)?;
            let log_odds = *networks.without(Some(fold))?.forward(input)?.first()?;
            by_confidence.push((-confidence, !is_right));
            by_gate.push((-f64::from(log_odds), !is_right));
        }
        let errors = by_gate.iter().filter(|(_, is_wrong)| *is_wrong).count();
        let [confidence, gate] = [by_confidence, by_gate].map(|scores| Ranking::new(scores.into_iter()));
        let each_once = vec![1; self.pictures.len()];
        let difference = |weights: &[u16]| Some(gate.auroc(weights)? - confidence.auroc(weights)?);
        let (low, high) = self.resampling.interval(difference);
        let mut part = GatePart {
            stage,
            models,
            networks,
            errors,
            by_confidence: confidence.auroc(&each_once)?,
            by_gate: gate.auroc(&each_once)?,
            change: Figure { value: difference(&each_once)?, low, high },
            is_used: false,
        };
        part.is_used = part.is_gain() || (learning == Learning::Always && errors >= ERRORS_MIN);
        Some(part)
    }

    /// What this stage answers for each picture, as a gate sees it.
    fn gated(&self, policy: &Policy, backbone: usize, stage: usize) -> Option<Vec<Gated>> {
        let policy = policy.as_far_as(stage)?;
        let gated = |picture: &Judged<'_>| {
            let answer = answer(&policy, self.policy, picture)?;
            let feature = picture.votes[backbone].feature.as_deref()?;
            Some(Gated {
                input: gate_input(&answer.distribution, answer.agreement, feature),
                confidence: answer.confidence().get(),
                is_right: answer.label() == picture.label,
            })
        };
        self.pictures.iter().map(gated).collect()
    }
}

/// A stage's answer as a gate sees it.
struct Gated {
    input: Vec<f32>,
    confidence: f64,
    is_right: bool,
}

/// The hidden layer is a quarter as wide as the feature (1024 → 256), no narrower than this.
const HIDDEN_MIN: usize = 32;

/// `None` where there is too little to learn from.
fn trained(examples: &[Example<'_>], goal: Goal<'_>, feature_width: usize) -> Option<Network> {
    let training = Training { hidden: (feature_width / 4).max(HIDDEN_MIN), ..Training::default() };
    match train(examples, goal, training) {
        Ok(network) => Some(network),
        Err(error) => {
            tracing::warn!(%error, "a network could not be trained");
            None
        }
    }
}

#[cfg(test)]
mod tests;
