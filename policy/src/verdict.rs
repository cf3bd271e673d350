//! What a cascade ends with: the fused answer, what it was made of, and what was left out of it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fusion::Belief;
use crate::learned::{LearnedPart, Unread};
use crate::probability::{Distribution, Probability};
use crate::vote::{Cost, Evidence, VoteFailure};

/// The fused answer, and what it was made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The fused probability of each label.
    pub distribution: Distribution,
    /// Whether every successful vote has the same most probable label.
    pub agreement: bool,
    /// The index of the last stage that was asked.
    pub stage: usize,
    /// Why the cascade stopped there.
    pub reason: Reason,
    /// Whether a stage before the last that was asked was too busy, so that the last stood in for it.
    pub burst: bool,
    /// How likely it is right, where the stage's rule asks a gate and the gate could be read.
    pub gate: Option<Probability>,
    /// The indices of the stages that were left out because their models would have counted for too little.
    pub skipped: Vec<usize>,
    /// The learned parts that could not be used; what is configured counted in their place.
    pub fallbacks: Vec<Fallback>,
    /// Every vote that was asked for, in the order of the policy; at least one of them succeeded.
    pub opinions: Vec<Opinion>,
}

impl Answer {
    /// The index of the most probable label.
    pub fn label(&self) -> usize {
        self.distribution.argmax()
    }

    /// The probability of the most probable label.
    pub fn confidence(&self) -> Probability {
        self.distribution.confidence()
    }

    /// Whether the same question would be answered in the same way again, so that the answer may be kept.
    pub fn is_lasting(&self) -> bool {
        let is_accident = |fallback: &Fallback| fallback.why == Unread::NoFeature;
        self.is_complete() && !self.burst && !self.fallbacks.iter().any(is_accident)
    }

    /// Whether every model that was asked has voted.
    pub fn is_complete(&self) -> bool {
        self.opinions.iter().all(|opinion| opinion.belief.is_ok())
    }

    /// The same answer, as it is when it comes out of the cache: its votes cost nothing then.
    #[must_use]
    pub fn as_cached(&self) -> Self {
        let mut answer = self.clone();
        for opinion in &mut answer.opinions {
            opinion.cost = Cost::CACHED;
            // It has been decided by it.
            opinion.evidence.feature = None;
        }
        answer
    }
}

/// Why a cascade stopped with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// The stage's accept rule was satisfied.
    Accepted,
    /// No rule was, and there is no further stage.
    Exhausted,
    /// No rule was, and an optional model of the last stage gave no vote: its failure says whether it was over its
    /// budget, left alone after failures, too slow or faulty.
    Incomplete,
}

impl Reason {
    /// As verdicts, spans and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Exhausted => "exhausted",
            Self::Incomplete => "incomplete",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A vote as the answer used it.
#[derive(Debug, Clone, PartialEq)]
pub struct Opinion {
    /// The name of the configured model.
    pub model: Arc<str>,
    /// The index of the stage at which it was asked.
    pub stage: usize,
    /// The calibrated vote with its share of the answer, or why there is none.
    pub belief: Result<Belief, VoteFailure>,
    /// What the model gave beside its vote.
    pub evidence: Evidence,
    /// What the vote cost.
    pub cost: Cost,
}

/// A learned part that could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// What it would have decided.
    pub part: LearnedPart,
    /// The index of the stage that it would have decided about.
    pub stage: usize,
    /// Why it could not be used.
    pub why: Unread,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A model failed that the policy does not call optional.
    #[error("required model {model} failed: {failure}")]
    RequiredVote {
        /// The index of its stage.
        stage: usize,
        /// Its name.
        model: Arc<str>,
        /// What it said.
        failure: VoteFailure,
    },
    /// Every model of every stage is optional, and all failed.
    #[error("no model gave a usable vote")]
    NoVote,
}
