//! The verdict: the fused answer, the votes that it was made of, and what was left out of it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::learned::{FallbackReason, LearnedPart};
use crate::probability::{Distribution, Probability};
use crate::vote::{Cost, Source, Vote, VoteFailure};

/// The fused answer to a task about one image, and the votes that it was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The fused probability of each label.
    pub distribution: Distribution,
    /// True if every successful vote has the same most probable label.
    pub agreement: bool,
    /// The index of the last stage that was asked.
    pub stage: usize,
    /// The reason why the cascade stopped there.
    pub reason: StopReason,
    /// True if a stage before the last that was asked was too busy, so that the last stood in for it.
    pub burst: bool,
    /// The estimated probability that the answer is correct, where the stage's rule asks for it and it could
    /// be estimated.
    pub correctness: Option<Probability>,
    /// The indices of the stages that were skipped because their models would have had too small a share.
    pub skipped: Vec<usize>,
    /// The learned parts that could not be used; the configured values counted in their place.
    pub fallbacks: Vec<Fallback>,
    /// Every vote that was asked for, in the order of the policy; at least one of them succeeded.
    pub votes: Vec<FusedVote>,
}

impl Verdict {
    /// Returns the index of the most probable label.
    pub fn label(&self) -> usize {
        self.distribution.argmax()
    }

    /// Returns the probability of the most probable label.
    pub fn confidence(&self) -> Probability {
        self.distribution.confidence()
    }

    /// Returns whether the same question would get the same verdict again, so that it may be cached.
    pub fn is_lasting(&self) -> bool {
        let is_accident = |fallback: &Fallback| fallback.reason == FallbackReason::NoFeature;
        self.is_complete() && !self.burst && !self.fallbacks.iter().any(is_accident)
    }

    /// Returns whether every model that was asked has voted.
    pub fn is_complete(&self) -> bool {
        self.votes.iter().all(|vote| vote.calibrated.is_some())
    }

    /// Returns the verdict as the cache keeps it: with votes that cost nothing, and without their features.
    #[must_use]
    pub fn as_cached(&self) -> Self {
        let mut verdict = self.clone();
        for FusedVote { vote, .. } in &mut verdict.votes {
            vote.cost = Cost::default();
            vote.source = Source::Cached;
            if let Ok(output) = &mut vote.output {
                // The learned networks have read it.
                output.evidence.feature = None;
            }
        }
        verdict
    }
}

/// The reason why a cascade stopped with a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The stage's accept rule was satisfied.
    Accepted,
    /// No rule was, and there is no further stage.
    Exhausted,
    /// No rule was, and an optional model of the last stage gave no vote, for the reason that stands with
    /// that vote.
    Incomplete,
}

impl StopReason {
    /// Returns the name that responses, spans and metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Exhausted => "exhausted",
            Self::Incomplete => "incomplete",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A vote as it was fused into a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FusedVote {
    /// The vote. One that does not fit the task is a failed one here.
    pub vote: Vote,
    /// The index of the stage at which it was asked for.
    pub stage: usize,
    /// The probabilities as they count: calibrated, and by the image's own temperature where that is learned.
    /// `None` where the vote failed.
    pub calibrated: Option<Distribution>,
    /// Its share of the verdict: the weights of all votes have the sum 1, and a failed one has 0.
    pub weight: f64,
}

/// A learned part that could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The part, named after its decision.
    pub part: LearnedPart,
    /// The index of the stage that it would have decided about.
    pub stage: usize,
    /// The reason why it could not be used.
    pub reason: FallbackReason,
}

/// The reason why there is no verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A model failed that the policy does not call optional.
    #[error("required model {model} failed: {failure}")]
    RequiredVote {
        /// The index of its stage.
        stage: usize,
        /// Its name.
        model: Arc<str>,
        /// Its failure.
        failure: VoteFailure,
    },
    /// Every model of every stage is optional, and all failed.
    #[error("no model gave a usable vote")]
    NoVote,
}
