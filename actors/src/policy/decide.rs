//! Which stage is asked next, or what the answer is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::fusion::{Belief, shares};
use super::probability::{Distribution, Logits, Probability, Weight};
use super::rules::{Member, Policy, Stage};
use super::vote::{Cost, Evidence, Vote, VoteFailure};

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
    /// Whether a stage before the last that was asked was too busy, so that the last stood in for it.
    pub burst: bool,
    /// Every vote that was asked for, in the order of the policy; at least one of them succeeded.
    pub opinions: Vec<Opinion>,
}

/// What a decision depends on besides the votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// How many images wait for each model or run in it; a model that is not here has none.
    pub queue_depths: BTreeMap<Arc<str>, usize>,
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
        self.is_complete() && !self.burst
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
///
/// Where a stage that has not been asked is busier than a later stage's `burst_queue_depth`, that one is asked instead;
/// once one of its votes has succeeded, the stages before it that nobody has asked are left out.
pub fn decide(policy: &Policy, votes: &[Vote], context: &Context) -> Decision {
    let mut heard = Vec::new();
    let mut answer = None;
    let mut burst = false;
    for (index, stage) in policy.stages().iter().enumerate() {
        if !stage.is_asked(votes) {
            match stand_in(policy, index, votes, context) {
                Some(StandIn::Voted) => {
                    burst = true;
                    continue;
                }
                Some(StandIn::Free(stage)) => return Decision::Ask { stage },
                None => {}
            }
        }
        for member in stage.members() {
            let Some(vote) = votes.iter().find(|vote| vote.model == *member.model()) else {
                return Decision::Ask { stage: index };
            };
            heard.push(Heard {
                member,
                stage: index,
                evidence: &vote.evidence,
                cost: vote.cost,
                logits: usable(vote, policy.labels().len()),
            });
        }
        if let Some(failure) = heard.iter().find_map(Heard::required_failure) {
            return Decision::Failed(failure);
        }
        answer = fuse(policy, index, &heard);
        let Some(fused) = &mut answer else { continue };
        fused.burst = burst;
        if heard.iter().any(|heard| heard.stage == index && heard.logits.is_err()) {
            fused.reason = Reason::Incomplete;
        }
        if stage.accept().is_some_and(|rule| rule.accepts(&fused.distribution, fused.agreement)) {
            fused.reason = Reason::Accepted;
            break;
        }
    }
    answer.map_or(Decision::Failed(Failure::NoVote), Decision::Answer)
}

/// What a later stage does for one that has not been asked.
enum StandIn {
    /// It has voted.
    Voted,
    /// It has not been asked, and may be: its index.
    Free(usize),
}

/// Whether a later stage stands in for the stage `index`.
fn stand_in(policy: &Policy, index: usize, votes: &[Vote], context: &Context) -> Option<StandIn> {
    let later = policy.stages().iter().enumerate().skip(index + 1);
    let mut bursts = later.filter_map(|(later, stage)| Some((later, stage, stage.burst_queue_depth()?)));
    let depth_of = |member: &Member| context.queue_depths.get(member.model()).copied().unwrap_or(0);
    let depth = policy.stages()[index].members().iter().map(depth_of).max().unwrap_or(0);
    bursts.find_map(|(later, stage, limit)| {
        if !stage.is_asked(votes) {
            return (depth > limit).then_some(StandIn::Free(later));
        }
        let has_voted = |member: &Member| {
            votes
                .iter()
                .any(|vote| vote.model == *member.model() && usable(vote, policy.labels().len()).is_ok())
        };
        stage.members().iter().any(has_voted).then_some(StandIn::Voted)
    })
}

impl Stage {
    fn is_asked(&self, votes: &[Vote]) -> bool {
        self.members().iter().any(|member| votes.iter().any(|vote| vote.model == *member.model()))
    }
}

/// A vote beside the policy's view of its model.
struct Heard<'a> {
    member: &'a Member,
    stage: usize,
    evidence: &'a Evidence,
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
        let evidence = one.evidence.clone();
        opinions.push(Opinion { model, stage: one.stage, belief, evidence, cost: one.cost });
    }
    let beliefs = || opinions.iter().filter_map(|opinion| opinion.belief.as_ref().ok());
    let distribution = policy.fusion().fuse(beliefs())?;
    let mut favourites = beliefs().map(|belief| belief.distribution.argmax());
    let first = favourites.next();
    let agreement = favourites.all(|label| Some(label) == first);
    Some(Answer { distribution, agreement, stage, reason: Reason::Exhausted, burst: false, opinions })
}
