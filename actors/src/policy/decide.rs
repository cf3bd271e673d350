//! Which stage is asked next, or what the answer is.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fusion::{Belief, shares};
use super::probability::{Distribution, Logits, Probability, Weight};
use super::rules::{Member, Policy};
use super::vote::{Cost, Vote, VoteFailure};

/// What happens next to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Ask the models of this stage that have not voted.
    Ask {
        /// Its index in the policy.
        stage: usize,
    },
    /// The cascade ends with an answer.
    Answer(Answer),
    /// The cascade ends without one.
    Failed(Failure),
}

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

    /// Whether every model that was asked has voted; if not, the answer is not to be cached.
    pub fn is_complete(&self) -> bool {
        self.opinions.iter().all(|opinion| opinion.belief.is_ok())
    }

    /// The same answer, as it is when it comes out of the cache: its votes cost nothing then.
    #[must_use]
    pub fn as_cached(&self) -> Self {
        let mut answer = self.clone();
        for opinion in &mut answer.opinions {
            opinion.cost = Cost::CACHED;
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
}

impl Reason {
    /// As verdicts, spans and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Exhausted => "exhausted",
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
    /// What the vote cost.
    pub cost: Cost,
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

/// Decides by `policy` what follows from `votes`.
///
/// Stages are judged in their order, each on the votes of the stages up to it, whatever the order of `votes`:
/// votes of later stages, of models that the policy does not ask, and a model's second vote change nothing. So
/// the answer to all votes at once is the answer of the cascade that would have asked for them one by one.
///
/// A stage is judged only when all its models have voted, if only to say that they failed; until then the
/// decision is to ask it. A vote with another number of logits than the policy has labels counts as failed.
pub fn decide(policy: &Policy, votes: &[Vote]) -> Decision {
    let mut heard = Vec::new();
    let mut answer = None;
    for (index, stage) in policy.stages().iter().enumerate() {
        for member in stage.members() {
            let Some(vote) = votes.iter().find(|vote| vote.model == *member.model()) else {
                return Decision::Ask { stage: index };
            };
            heard.push(Heard {
                member,
                stage: index,
                cost: vote.cost,
                logits: usable(vote, policy.labels().len()),
            });
        }
        if let Some(failure) = heard.iter().find_map(Heard::required_failure) {
            return Decision::Failed(failure);
        }
        answer = fuse(policy, index, &heard);
        if let (Some(fused), Some(rule)) = (&mut answer, stage.accept())
            && rule.accepts(&fused.distribution, fused.agreement)
        {
            fused.reason = Reason::Accepted;
            break;
        }
    }
    answer.map_or(Decision::Failed(Failure::NoVote), Decision::Answer)
}

/// A vote beside the policy's view of its model.
struct Heard<'a> {
    member: &'a Member,
    stage: usize,
    cost: Cost,
    logits: Result<&'a Logits, VoteFailure>,
}

impl Heard<'_> {
    fn required_failure(&self) -> Option<Failure> {
        let failure = self.logits.as_ref().err().filter(|_| self.member.is_required())?;
        Some(Failure::RequiredVote {
            stage: self.stage,
            model: Arc::clone(self.member.model()),
            failure: failure.clone(),
        })
    }
}

fn usable(vote: &Vote, labels: usize) -> Result<&Logits, VoteFailure> {
    let logits = vote.outcome.as_ref().map_err(Clone::clone)?;
    let found = logits.values().len();
    if found == labels {
        Ok(logits)
    } else {
        Err(VoteFailure::new(format!("{found} logits for {labels} labels")))
    }
}

/// The answer after the stage `stage`, as if it were the last; `None` when no vote has succeeded.
fn fuse(policy: &Policy, stage: usize, heard: &[Heard<'_>]) -> Option<Answer> {
    let weights: Vec<Weight> =
        heard.iter().filter(|heard| heard.logits.is_ok()).map(|heard| heard.member.weight()).collect();
    let mut shares = shares(&weights).into_iter();
    let mut opinions = Vec::with_capacity(heard.len());
    for one in heard {
        let belief = one.logits.clone().map(|logits| Belief {
            distribution: logits.calibrated(one.member.temperature()),
            weight: shares.next().unwrap_or_default(),
        });
        let model = Arc::clone(one.member.model());
        opinions.push(Opinion { model, stage: one.stage, belief, cost: one.cost });
    }
    let beliefs = || opinions.iter().filter_map(|opinion| opinion.belief.as_ref().ok());
    let distribution = policy.fusion().fuse(beliefs())?;
    let mut favourites = beliefs().map(|belief| belief.distribution.argmax());
    let first = favourites.next();
    let agreement = favourites.all(|label| Some(label) == first);
    Some(Answer { distribution, agreement, stage, reason: Reason::Exhausted, opinions })
}
