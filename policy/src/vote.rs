//! A model's vote about one image for one task.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::output::ModelOutput;

/// A vote of one model on one image for one task, with its cost.
///
/// The stage at which it was requested is not part of it: that is a matter of the policy, and a vote outlives
/// a policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Vote {
    /// The name of the configured model.
    pub model: Arc<str>,
    /// The output, uncalibrated, or the reason why there is none.
    pub output: Result<ModelOutput, VoteFailure>,
    /// The time that was spent on the vote, failed or not.
    pub cost: Cost,
    /// The source of the vote.
    pub source: Source,
}

/// The source of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The model was asked.
    Fresh,
    /// The vote came from the cache, and cost nothing.
    Cached,
}

/// The time that was spent on a vote; zero where it came from the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// The wait for the model, once the input was ready.
    pub queue: Duration,
    /// The conversion from the decoded image to the model's input.
    pub preprocess: Duration,
    /// The time in the model, for the whole batch that the image was part of.
    pub model: Duration,
}

impl Vote {
    /// Makes a vote that came from the cache, and cost nothing.
    pub fn known(model: Arc<str>, output: ModelOutput) -> Self {
        Self { model, output: Ok(output), cost: Cost::default(), source: Source::Cached }
    }

    /// Makes a failed vote that cost nothing.
    pub fn failed(model: Arc<str>, failure: VoteFailure) -> Self {
        Self { model, output: Err(failure), cost: Cost::default(), source: Source::Fresh }
    }
}

/// The reason why a model gave no usable vote, in words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{reason}")]
pub struct VoteFailure {
    kind: FailureKind,
    reason: String,
}

/// The kind of a failed vote, by its meaning for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The model failed.
    Model,
    /// The model has as many requests as it accepts: asking later may help.
    Busy,
    /// Nobody waits for the vote any more, or the deadline passed before the model ran.
    Expired,
    /// The model's budget for the hour is spent.
    OverBudget,
    /// The server behind the model failed several times in a row, and is not asked for a while.
    CircuitOpen,
    /// The server behind the model did not answer in time.
    TimedOut,
    /// The model cannot answer this question, however often it is asked.
    Refused,
}

impl FailureKind {
    /// Returns the name that verdicts and metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "failed",
            Self::Busy => "busy",
            Self::Expired => "expired",
            Self::OverBudget => "over_budget",
            Self::CircuitOpen => "circuit_open",
            Self::TimedOut => "timed_out",
            Self::Refused => "refused",
        }
    }
}

impl VoteFailure {
    /// Makes the failure of a model that failed for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { kind: FailureKind::Model, reason: reason.into() }
    }

    /// Makes the failure of a model whose queue is full.
    pub fn busy() -> Self {
        Self { kind: FailureKind::Busy, reason: "the model's queue is full (queue_capacity)".to_owned() }
    }

    /// Makes the failure of a vote that would have come too late.
    pub fn expired() -> Self {
        Self {
            kind: FailureKind::Expired,
            reason: "the deadline passed before the model had answered".to_owned(),
        }
    }

    /// Makes a failure of this kind.
    pub fn of(kind: FailureKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// Returns its kind.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }
}
