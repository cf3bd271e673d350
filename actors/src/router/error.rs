//! The reasons why a request gets no answer.

use std::time::Duration;

use concord_models::DecodeError;
use concord_policy::{Failure, FailureKind};

use crate::capacity::Overloaded;

/// The reason why a request gets no answer; every kind means something else for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// The models are being loaded or warmed up, or the process is about to end.
    #[error("not ready: the models are being loaded or warmed up")]
    NotReady,
    /// No task has that name.
    #[error("no task {task:?} is configured: there is {}", tasks.join(", "))]
    UnknownTask {
        /// The name that was asked for.
        task: String,
        /// The configured tasks.
        tasks: Vec<String>,
    },
    /// No model has that name, or it generates no text.
    #[error("no model {model:?} that generates text: there is {}", models.join(", "))]
    UnknownModel {
        /// The name that was asked for.
        model: String,
        /// The models that generate text.
        models: Vec<String>,
    },
    /// The bytes are no image, or a too large one.
    #[error(transparent)]
    Image(DecodeError),
    /// Too many requests are in flight; a later one may be answered.
    #[error("{reason}")]
    Busy {
        /// The limit that has been reached.
        reason: String,
        /// The time after which another attempt may succeed.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("no answer within the time limit (request_timeout_ms)")]
    Expired,
    /// A model that the policy requires gave no vote, or none did.
    #[error(transparent)]
    Failed(Failure),
    /// The computation ended without an outcome, which is a bug in Concord.
    #[error("the request was lost: {0}")]
    Lost(&'static str),
}

/// The time after which a client that was refused because of a full queue may try again: queues are worked off
/// within it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl RouteError {
    /// Returns the error of a full queue, or of another limit that is free again within a second.
    pub(super) fn busy(reason: impl Into<String>) -> Self {
        Self::Busy { reason: reason.into(), retry_after: RETRY_AFTER }
    }

    /// Returns the outcome's name in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::UnknownTask { .. } => "unknown_task",
            Self::UnknownModel { .. } => "unknown_model",
            Self::Image(_) => "bad_image",
            Self::Busy { .. } => "busy",
            Self::Expired => "expired",
            Self::Failed(_) => "failed",
            Self::Lost(_) => "lost",
        }
    }
}

impl From<Overloaded> for RouteError {
    fn from(overloaded: Overloaded) -> Self {
        let reason = "too many requests: this one would not be answered within request_timeout_ms".to_owned();
        Self::Busy { reason, retry_after: overloaded.retry_after }
    }
}

impl From<DecodeError> for RouteError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Abandoned => Self::Expired,
            error => Self::Image(error),
        }
    }
}

impl From<Failure> for RouteError {
    fn from(failure: Failure) -> Self {
        let kind = match &failure {
            Failure::RequiredVote { failure, .. } => failure.kind(),
            Failure::NoVote => FailureKind::Model,
        };
        match kind {
            FailureKind::Model
            | FailureKind::OverBudget
            | FailureKind::CircuitOpen
            | FailureKind::TimedOut
            | FailureKind::Refused => Self::Failed(failure),
            FailureKind::Busy => Self::busy(failure.to_string()),
            FailureKind::Expired => Self::Expired,
        }
    }
}
