//! The stages of a cascade: which models are asked together, how much each counts, and when an answer is good
//! enough.

use std::sync::Arc;

use crate::calibration::Calibration;
use crate::probability::{Probability, Weight};
use crate::verdict::Verdict;

/// A stage: models that are asked together.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    pub(crate) members: Vec<Member>,
    pub(crate) accept: Option<AcceptRule>,
    pub(crate) burst_queue_depth: Option<usize>,
    pub(crate) min_weight: Option<Probability>,
}

impl Stage {
    /// Returns the models, in the order of the configuration.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the queue depth of an earlier stage's model above which this stage is asked instead of that
    /// one.
    pub fn burst_queue_depth(&self) -> Option<usize> {
        self.burst_queue_depth
    }

    /// Returns the share of the answer that the learned weights must exceed for one of its models to make the
    /// stage worth asking; `None` if it always is.
    pub fn min_weight(&self) -> Option<Probability> {
        self.min_weight
    }

    /// Returns the rule by which the cascade may stop here; `None` if it only stops here at its end.
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
    /// Returns the name of the configured model.
    pub fn model(&self) -> &Arc<str> {
        &self.model
    }

    /// Returns whether a request fails without its vote.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Returns the weight of its vote beside the others.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Returns the calibration of its logits.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }
}

/// A rule for when a stage's fused answer is good enough to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AcceptRule {
    pub(crate) confidence: Probability,
    pub(crate) correctness: Option<Probability>,
    pub(crate) agreement: bool,
}

impl AcceptRule {
    /// Returns the least confidence.
    pub fn confidence(self) -> Probability {
        self.confidence
    }

    /// Returns whether every successful vote so far must have the same most probable label.
    pub fn needs_agreement(self) -> bool {
        self.agreement
    }

    /// Returns the least output of the learned correctness estimator. It replaces the least confidence where
    /// the estimator can be evaluated.
    pub fn correctness(self) -> Option<Probability> {
        self.correctness
    }

    /// Returns whether a fused answer may end the cascade.
    pub(crate) fn accepts(self, fused: &Verdict) -> bool {
        let is_sure = match (self.correctness, fused.correctness) {
            (Some(least), Some(correctness)) => correctness >= least,
            _ => fused.confidence() >= self.confidence,
        };
        is_sure && (fused.agreement || !self.agreement)
    }
}
