//! Why a picture got no verdict, with a type that programs can rely on.

use concord_actors::policy::Failure;
use concord_models::DecodeError;
use serde::Serialize;

/// A request that failed. The type is stable, the detail is for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What kind of failure it is.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// What happened to this request, and what to do about it.
    pub detail: String,
}

/// The kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// The file is missing or cannot be read.
    Unreadable,
    /// There are no bytes.
    Empty,
    /// The bytes are no image of a known format.
    NotAnImage,
    /// It begins as an image and is broken.
    BrokenImage,
    /// More bytes or pixels than the configuration allows.
    TooLarge,
    /// A model that the policy requires gave no vote.
    ModelFailed,
}

impl Problem {
    /// A file that cannot be read.
    pub fn unreadable(error: &impl ToString) -> Self {
        Self { kind: ProblemKind::Unreadable, detail: error.to_string() }
    }

    /// An encoded image of more bytes than allowed.
    pub fn too_many_bytes(limit: u64) -> Self {
        let detail = format!("the image has more than the limit of {limit} bytes (max_body_bytes)");
        Self { kind: ProblemKind::TooLarge, detail }
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let kind = match error {
            DecodeError::Empty => ProblemKind::Empty,
            DecodeError::NotAnImage => ProblemKind::NotAnImage,
            DecodeError::TooLarge { .. } => ProblemKind::TooLarge,
            DecodeError::Broken { .. } => ProblemKind::BrokenImage,
        };
        Self { kind, detail: error.to_string() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self { kind: ProblemKind::ModelFailed, detail: failure.to_string() }
    }
}
