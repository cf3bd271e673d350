//! The messages that a router takes, and its answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Message;
use bytes::Bytes;
use concord_models::GenerateRequest;
use concord_policy::Verdict;
use tokio_util::sync::CancellationToken;

use super::error::RouteError;
use super::generate_stream::GenerateStream;
use crate::Trace;
use crate::plan::TaskPlan;

/// A request to classify an image.
#[derive(Debug, Message)]
#[rtype(result = "Result<Routed, RouteError>")]
pub struct Classify {
    /// The task's name.
    pub task: String,
    /// The encoded image.
    pub image: Bytes,
    /// The time after which an answer is of no use any more.
    pub deadline: Instant,
    /// True to answer without a lookup in the cache.
    pub fresh: bool,
    /// True if a model has to explain the answer in words.
    pub explain: bool,
    /// The request's span.
    pub trace: Trace,
    /// Cancelled when the client has left.
    pub client_left: CancellationToken,
}

/// An answer, and how it was computed.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The task as it was when the request came.
    pub task: Arc<TaskPlan>,
    /// The verdict.
    pub verdict: Arc<Verdict>,
    /// The work that the cache saved.
    pub cache: CacheOutcome,
    /// The time from encoded bytes to pixels; zero where that was not needed.
    pub decode: Duration,
    /// The time from the request's arrival at the router to the answer.
    pub total: Duration,
    /// The explanation of the answer, where that was asked for.
    pub explanation: Option<Explanation>,
}

/// The work that the cache saved a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// Everything: the verdict was there.
    Verdict,
    /// Every forward: the votes were there, and were fused again.
    Votes,
    /// Some forwards.
    SomeVotes,
    /// Its own computation: it shared that of an identical request in flight.
    Coalesced,
    /// Nothing.
    Miss,
}

impl CacheOutcome {
    /// Returns its name in verdicts and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Votes => "votes",
            Self::SomeVotes => "some_votes",
            Self::Coalesced => "coalesced",
            Self::Miss => "miss",
        }
    }
}

/// A model's explanation of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The model's name; `None` where no model takes questions.
    pub model: Option<String>,
    /// The text, or why there is none.
    pub text: Result<String, String>,
}

/// A request for a text about an image.
#[derive(Debug, Message)]
#[rtype(result = "Result<GenerateStream, RouteError>")]
pub struct Generate {
    /// The model's name.
    pub model: String,
    /// The encoded image.
    pub image: Bytes,
    /// The prompt, and the length of the text.
    pub request: GenerateRequest,
    /// The time when the text ends at the latest; what has been written by then has been sent.
    pub deadline: Instant,
    /// The request's span.
    pub trace: Trace,
    /// Cancelled when the client leaves before the stream is there; later it drops the stream.
    pub client_left: CancellationToken,
}
