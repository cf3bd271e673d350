//! One model's answer about one image for one task.

use std::sync::Arc;
use std::time::Duration;

use super::Logits;

/// One model's answer about one image for one task, and what it cost.
///
/// It does not say at which stage it was asked for: that is the policy's affair, and a vote outlives a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Vote {
    /// The name of the configured model.
    pub model: Arc<str>,
    /// Uncalibrated logits, or why there are none.
    pub outcome: Result<Logits, VoteFailure>,
    /// What was spent on it, failed or not.
    pub cost: Cost,
}

/// The time that a vote took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// From decoded image to the model's input.
    pub preprocess: Duration,
    /// In the model.
    pub model: Duration,
}

/// Why a model gave no usable vote, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct VoteFailure(String);

impl VoteFailure {
    /// A failure with this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
