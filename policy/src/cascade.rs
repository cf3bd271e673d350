//! The stages of a cascade: which models are asked together, how much each counts, and when an answer is good
//! enough.

use std::sync::Arc;

use crate::calibration::Calibration;
use crate::probability::{Probability, Weight};
use crate::verdict::Verdict;

/// Models that are asked together.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    pub(crate) members: Vec<Member>,
    pub(crate) accept: Option<AcceptRule>,
    pub(crate) burst_queue_depth: Option<usize>,
    pub(crate) min_weight: Option<Probability>,
}

impl Stage {
    /// The models, in the order of the configuration.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Asked instead of an earlier stage while more images than this wait for one of that stage's models.
    pub fn burst_queue_depth(&self) -> Option<usize> {
        self.burst_queue_depth
    }

    /// The share of the answer that the learned weights must give to one of its models, more than which makes
    /// it worth asking; `None`: it always is.
    pub fn min_weight(&self) -> Option<Probability> {
        self.min_weight
    }

    /// When the cascade may stop here; `None`: never because of what was answered.
    pub fn accept(&self) -> Option<AcceptRule> {
        self.accept
    }
}

/// A model's part in a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    pub(crate) model: Arc<str>,
    pub(crate) required: bool,
    pub(crate) weight: Weight,
    pub(crate) calibration: Calibration,
}

impl Member {
    /// The name of the configured model.
    pub fn model(&self) -> &Arc<str> {
        &self.model
    }

    /// Whether there is no answer without its vote.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// How much its vote counts beside the others.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// What makes probabilities of its logits.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }
}

/// When a stage's fused answer is good enough to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AcceptRule {
    pub(crate) confidence: Probability,
    pub(crate) correctness: Option<Probability>,
    pub(crate) agreement: bool,
}

impl AcceptRule {
    /// The least confidence.
    pub fn confidence(self) -> Probability {
        self.confidence
    }

    /// Whether every successful vote so far must have the same most probable label.
    pub fn needs_agreement(self) -> bool {
        self.agreement
    }

    /// How likely the answer must be right by the learned correctness estimator, which counts instead of the
    /// confidence where it can be read.
    pub fn correctness(self) -> Option<Probability> {
        self.correctness
    }

    /// Whether a fused answer may end the cascade.
    pub(crate) fn accepts(self, fused: &Verdict) -> bool {
        let is_sure = match (self.correctness, fused.correctness) {
            (Some(least), Some(correctness)) => correctness >= least,
            _ => fused.confidence() >= self.confidence,
        };
        is_sure && (fused.agreement || !self.agreement)
    }
}
