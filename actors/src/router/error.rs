//! The reasons why a request gets no answer.

use concord_models::DecodeError;
use concord_policy::{Failure, FailureKind};

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
    #[error("{0}")]
    Busy(String),
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

impl RouteError {
    /// Returns the outcome's name in metrics.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::UnknownTask { .. } => "unknown_task",
            Self::UnknownModel { .. } => "unknown_model",
            Self::Image(_) => "bad_image",
            Self::Busy(_) => "busy",
            Self::Expired => "expired",
            Self::Failed(_) => "failed",
            Self::Lost(_) => "lost",
        }
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
            FailureKind::Busy => Self::Busy(failure.to_string()),
            FailureKind::Expired => Self::Expired,
        }
    }
}
