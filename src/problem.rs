//! The failures of a request, with a kind that programs can rely on. Only this file maps failures to HTTP
//! statuses.

use std::time::Duration;

use concord_actors::RouteError;
use concord_models::DecodeError;
use concord_policy::{FailureKind, VoteFailure};
use serde::Serialize;
use utoipa::ToSchema;

/// The failure of a request. The kind is stable, the detail is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The kind of failure.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// The failure of this request, and what to do about it.
    pub detail: String,
    /// The time after which another attempt may succeed, where that is known.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The file is missing or cannot be read (command line only).
    Unreadable,
    /// The image has no bytes.
    Empty,
    /// The bytes are not an image of a known format.
    NotAnImage,
    /// The bytes begin like an image and are broken.
    BrokenImage,
    /// The image has more bytes or pixels than the configuration allows.
    TooLarge,
    /// The body is not what its content type says, or lacks the image.
    BadRequest,
    /// The body is compressed, or of a type that holds no image.
    UnsupportedMediaType,
    /// The body took longer to arrive than a request may take.
    SlowBody,
    /// The API key is missing or wrong.
    Unauthorized,
    /// No task has that name.
    UnknownTask,
    /// No model of that name generates texts.
    UnknownModel,
    /// Nothing is served at that path.
    NotFound,
    /// The path does not support the method.
    MethodNotAllowed,
    /// A queue or the number of requests in flight is at its limit.
    Busy,
    /// A model that the policy requires cast no vote, or a model generated no text.
    ModelFailed,
    /// The models are being loaded, or the process is shutting down.
    NotReady,
    /// The time limit was exceeded.
    TimedOut,
    /// A bug in Concord.
    Internal,
}

impl ProblemKind {
    /// Returns the HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Self::Empty | Self::NotAnImage | Self::BrokenImage | Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Unreadable | Self::UnknownTask | Self::UnknownModel | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::SlowBody => 408,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::ModelFailed | Self::NotReady => 503,
            Self::TimedOut => 504,
        }
    }

    /// Returns the kind in words, which are the same for every problem of that kind.
    pub fn title(self) -> &'static str {
        match self {
            Self::Unreadable => "the file cannot be read",
            Self::Empty => "the image is empty",
            Self::NotAnImage => "not an image",
            Self::BrokenImage => "the image is broken",
            Self::TooLarge => "the image is too large",
            Self::BadRequest => "the request cannot be read",
            Self::UnsupportedMediaType => "the body's type is not supported",
            Self::SlowBody => "the body did not arrive in time",
            Self::Unauthorized => "an API key is needed",
            Self::UnknownTask => "no such task",
            Self::UnknownModel => "no such model",
            Self::NotFound => "nothing is served at this path",
            Self::MethodNotAllowed => "method not supported",
            Self::Busy => "too many requests",
            Self::ModelFailed => "a required model failed",
            Self::NotReady => "not ready",
            Self::TimedOut => "time limit exceeded",
            Self::Internal => "internal error",
        }
    }
}

impl Problem {
    /// Returns a problem of this kind.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), retry_after: None }
    }

    /// Returns the problem of a model that failed to generate a text.
    pub fn of_vote(failure: &VoteFailure) -> Self {
        let kind = match failure.kind() {
            FailureKind::Expired => ProblemKind::TimedOut,
            FailureKind::Busy => ProblemKind::Busy,
            FailureKind::Refused => ProblemKind::BadRequest,
            _ => ProblemKind::ModelFailed,
        };
        Self::new(kind, failure.to_string())
    }

    /// Returns the problem of a file that cannot be read.
    pub fn unreadable(error: &impl ToString) -> Self {
        Self::new(ProblemKind::Unreadable, error.to_string())
    }

    /// Returns the problem of an encoded image of more than `limit` bytes.
    pub fn too_many_bytes(limit: u64) -> Self {
        Self::new(
            ProblemKind::TooLarge,
            format!("the image has more than the limit of {limit} bytes (max_body_bytes)"),
        )
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let kind = match error {
            DecodeError::Empty => ProblemKind::Empty,
            DecodeError::NotAnImage => ProblemKind::NotAnImage,
            DecodeError::TooLarge { .. } | DecodeError::TooCostly { .. } => ProblemKind::TooLarge,
            DecodeError::Broken { .. } => ProblemKind::BrokenImage,
            DecodeError::Abandoned => ProblemKind::TimedOut,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<RouteError> for Problem {
    fn from(error: RouteError) -> Self {
        let kind = match error {
            RouteError::Image(error) => return error.into(),
            RouteError::NotReady => ProblemKind::NotReady,
            RouteError::UnknownTask { .. } => ProblemKind::UnknownTask,
            RouteError::UnknownModel { .. } => ProblemKind::UnknownModel,
            RouteError::Busy { reason, retry_after } => {
                return Self { retry_after: Some(retry_after), ..Self::new(ProblemKind::Busy, reason) };
            }
            RouteError::Expired => ProblemKind::TimedOut,
            RouteError::Failed(_) => ProblemKind::ModelFailed,
            RouteError::Lost(_) => ProblemKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}
