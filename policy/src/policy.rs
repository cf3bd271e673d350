//! The policy of a task: its question, labels, stages, accept rules, weights and calibration, all checked.

use std::sync::Arc;

use crate::calibration::{Calibration, VectorScaling};
use crate::cascade::{Member, Stage};
use crate::fusion::FusionMethod;
use crate::learned::Learned;
use crate::probability::{Distribution, Probability, Weight};

/// A validated task: only [`Policy::from_section`] makes one, so nothing that uses it checks again.
///
/// It has at least two different labels and at least one stage; every stage has a model; no model is in two
/// stages.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub(crate) question: String,
    pub(crate) labels: Vec<String>,
    pub(crate) prompts: Vec<Vec<String>>,
    pub(crate) answers: Vec<String>,
    pub(crate) fusion: FusionMethod,
    pub(crate) learned: Option<Arc<Learned>>,
    pub(crate) stages: Vec<Stage>,
}

impl Policy {
    /// Returns the question about an image.
    pub fn question(&self) -> &str {
        &self.question
    }

    /// Returns the possible answers; a label's index is its number everywhere.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Returns the most probable label of a distribution; `None` if it is not one over these labels.
    pub fn label(&self, distribution: &Distribution) -> Option<&str> {
        let has_labels = distribution.probabilities().len() == self.labels.len();
        self.labels.get(distribution.argmax()).filter(|_| has_labels).map(String::as_str)
    }

    /// Returns for each label the texts that stand for it in zero-shot models, at least one.
    pub fn prompts(&self) -> &[Vec<String>] {
        &self.prompts
    }

    /// Returns for each label the answer of a model that is asked the question and means that label; all
    /// different.
    pub fn answers(&self) -> &[String] {
        &self.answers
    }

    /// Returns the method by which votes are fused.
    pub fn fusion(&self) -> FusionMethod {
        self.fusion
    }

    /// Returns the learned networks, if there are any.
    pub fn learned(&self) -> Option<&Arc<Learned>> {
        self.learned.as_ref()
    }

    /// Returns the stages, in the order in which they are asked.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// Returns the policy without some of its models, and without the stages that only they were in; `None`
    /// if nothing is left.
    #[must_use]
    pub fn without(&self, is_off: impl Fn(&str) -> bool) -> Option<Self> {
        let mut policy = self.clone();
        for stage in &mut policy.stages {
            stage.members.retain(|member| !is_off(&member.model));
        }
        policy.stages.retain(|stage| !stage.members.is_empty());
        (!policy.stages.is_empty()).then_some(policy)
    }

    /// Returns the policy with its stages in another order, given as their indices here. `None` if `order`
    /// does not have every stage once, or puts a stage first that would be of no use there: one with a
    /// `burst_queue_depth` or a `min_weight`.
    #[must_use]
    pub fn in_order(&self, order: &[usize]) -> Option<Self> {
        let mut left: Vec<Option<Stage>> = self.stages.iter().cloned().map(Some).collect();
        let stages: Vec<Stage> =
            order.iter().map(|&index| left.get_mut(index)?.take()).collect::<Option<_>>()?;
        let first = stages.first()?;
        let needs_one_before = first.burst_queue_depth.is_some() || first.min_weight.is_some();
        if stages.len() != self.stages.len() || (needs_one_before && order.first() != Some(&0)) {
            return None;
        }
        Some(Self { stages, ..self.clone() })
    }

    /// Returns the policy with learned networks. A network that does not fit the policy's models is not used
    /// in decisions, and verdicts say so; [`Learned::check`] finds it before.
    #[must_use]
    pub fn with_learned(&self, learned: Arc<Learned>) -> Self {
        Self { learned: Some(learned), ..self.clone() }
    }

    /// Returns the policy without learned networks: with fixed weights, log-linear in place of learned
    /// fusion, and plain confidences.
    #[must_use]
    pub fn without_learned(&self) -> Self {
        let fusion = if self.fusion == FusionMethod::Learned { FusionMethod::LogLinear } else { self.fusion };
        Self { learned: None, fusion, ..self.clone() }.with_correctness(|_, _| None)
    }

    /// Returns a policy that asks the same models in one stage, all of them optional, and fuses them by
    /// `method`.
    #[must_use]
    pub fn all_at_once(&self, method: FusionMethod) -> Self {
        let members = self.members().map(|member| Member { required: false, ..member.clone() }).collect();
        let stage = Stage { members, accept: None, burst_queue_depth: None, min_weight: None };
        Self { fusion: method, stages: vec![stage], ..self.clone() }
    }

    /// Returns a policy that asks all models one after the other, whatever they answer, all of them optional
    /// and uncalibrated.
    #[must_use]
    pub fn one_by_one(&self) -> Self {
        let alone = |member: &Member| {
            let member = Member { required: false, calibration: Calibration::NEUTRAL, ..member.clone() };
            Stage { members: vec![member], accept: None, burst_queue_depth: None, min_weight: None }
        };
        Self { stages: self.members().map(alone).collect(), ..self.clone() }
    }

    /// Returns the policy of the stages up to this one as by [`Self::all_at_once`], with the accept rule of
    /// this stage; `None` if there is no such stage.
    #[must_use]
    pub fn as_far_as(&self, stage: usize) -> Option<Self> {
        let stages = self.stages.get(..=stage)?.to_vec();
        let accept = stages.last()?.accept;
        let mut policy = Self { stages, ..self.clone() }.all_at_once(self.fusion);
        policy.stages.first_mut()?.accept = accept;
        Some(policy)
    }

    /// Returns the policy with equal weights.
    #[must_use]
    pub fn with_uniform_weights(&self) -> Self {
        self.with_weights(self.fusion, |_| Weight::UNIFORM)
    }

    /// Returns the policy with other weights, fused by `method`.
    #[must_use]
    pub fn with_weights(&self, method: FusionMethod, weight_of: impl Fn(&Member) -> Weight) -> Self {
        let mut policy = Self { fusion: method, ..self.clone() };
        for member in policy.stages.iter_mut().flat_map(|stage| &mut stage.members) {
            member.weight = weight_of(member);
        }
        policy
    }

    /// Returns the policy with other thresholds of the correctness estimator in the stages that have an
    /// accept rule; `correctness_of` is given the stage's index and its least confidence.
    #[must_use]
    pub fn with_correctness(
        &self,
        correctness_of: impl Fn(usize, Probability) -> Option<Probability>,
    ) -> Self {
        let mut policy = self.clone();
        for (index, stage) in policy.stages.iter_mut().enumerate() {
            if let Some(rule) = &mut stage.accept {
                rule.correctness = correctness_of(index, rule.confidence);
            }
        }
        policy
    }

    /// Returns the policy with other calibrations; one for another number of labels is ignored.
    #[must_use]
    pub fn with_calibrations(&self, calibration_of: impl Fn(&Member) -> Calibration) -> Self {
        let mut policy = self.clone();
        for member in policy.stages.iter_mut().flat_map(|stage| &mut stage.members) {
            let calibration = calibration_of(member);
            let has_other_labels = |scaling: &VectorScaling| scaling.scale().len() != self.labels.len();
            if !calibration.scaling().is_some_and(has_other_labels) {
                member.calibration = calibration;
            }
        }
        policy
    }

    /// Returns every model of every stage, in the order in which they are asked.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.stages.iter().flat_map(|stage| &stage.members)
    }
}
