//! One model's answer about one image for one task.

use std::sync::Arc;
use std::time::Duration;

use crate::output::Region;
use crate::probability::Logits;

/// One model's answer about one image for one task, and what it cost.
///
/// It does not say at which stage it was asked for: that is the policy's affair, and a vote outlives a policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Vote {
    /// The name of the configured model.
    pub model: Arc<str>,
    /// Uncalibrated logits, or why there are none.
    pub outcome: Result<Logits, VoteFailure>,
    /// What it gave beside them.
    pub evidence: Evidence,
    /// What was spent on it, failed or not.
    pub cost: Cost,
}

impl Vote {
    /// A vote that is known, and cost nothing.
    pub fn known(model: Arc<str>, logits: Logits, evidence: Evidence) -> Self {
        Self { model, outcome: Ok(logits), evidence, cost: Cost::CACHED }
    }

    /// No vote, at no cost.
    pub fn failed(model: Arc<str>, failure: VoteFailure) -> Self {
        Self { model, outcome: Err(failure), evidence: Evidence::default(), cost: Cost::default() }
    }
}

/// What a model gives beside its logits.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// What was found in the image, where the model looks for things; nothing is decided by it.
    pub regions: Arc<[Region]>,
    /// What a backbone made of the image: learned weights and gates read it.
    pub feature: Option<Arc<[f32]>>,
    /// How much passes with dropout differ, in nats, where there are several; nothing is decided by it.
    pub uncertainty: Option<f32>,
}

/// What a vote cost; nothing where it came out of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Waiting for the model, ready to run.
    pub queue: Duration,
    /// From decoded image to the model's input.
    pub preprocess: Duration,
    /// In the model: of the whole batch that the image was part of.
    pub model: Duration,
    /// Whether the vote came out of the cache.
    pub cached: bool,
}

impl Cost {
    /// Of a vote that came out of the cache.
    pub const CACHED: Self =
        Self { queue: Duration::ZERO, preprocess: Duration::ZERO, model: Duration::ZERO, cached: true };
}

/// Why a model gave no usable vote, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct VoteFailure {
    kind: FailureKind,
    reason: String,
}

/// What a failed vote means for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The model failed.
    Model,
    /// The model has as much to do as it may have: asking later may help.
    Busy,
    /// Nobody wanted the vote any more, or the deadline passed before the model came to it.
    Expired,
    /// What may be spent on the model in an hour has been spent.
    OverBudget,
    /// The server behind the model has failed several times in a row, and is left alone for a while.
    LeftAlone,
    /// The server behind the model did not answer in time.
    TimedOut,
    /// The question is none for this model, whenever it is put.
    Refused,
}

impl FailureKind {
    /// As verdicts and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "failed",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::OverBudget => "over_budget",
            Self::LeftAlone => "left_alone",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
        }
    }
}

impl VoteFailure {
    /// A model that failed for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { kind: FailureKind::Model, reason: reason.into() }
    }

    /// A model whose queue is full.
    pub fn busy() -> Self {
        Self { kind: FailureKind::Busy, reason: "the model's queue is full (queue_capacity)".to_owned() }
    }

    /// A vote that came too late to be given.
    pub fn expired() -> Self {
        Self {
            kind: FailureKind::Expired,
            reason: "the deadline passed before the model had answered".to_owned(),
        }
    }

    /// A failure of this kind.
    pub fn of(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// What it means for whoever asked.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}
