//! The votes so far in the order of the policy, and the verdict that they amount to.

use std::sync::Arc;

use crate::cascade::{AcceptRule, Member, Stage};
use crate::fusion::{FusionMethod, shares};
use crate::learned::{EffectiveWeight, FallbackReason, LearnedInference, LearnedPart};
use crate::policy::Policy;
use crate::probability::{Distribution, Logits, Probability, Weight};
use crate::verdict::{Failure, Fallback, FusedVote, StopReason, Verdict};
use crate::vote::{Vote, VoteFailure};

/// The votes so far in the order of the policy, with the learned networks' inference about the image.
pub(crate) struct VoteTally<'a> {
    policy: &'a Policy,
    votes: Vec<TalliedVote<'a>>,
    learned: LearnedInference<'a>,
    fallbacks: Vec<Fallback>,
}

/// A vote with the member of the policy that gave it.
struct TalliedVote<'a> {
    member: &'a Member,
    stage: usize,
    vote: &'a Vote,
    logits: Result<Logits<'a>, VoteFailure>,
}

impl<'a> VoteTally<'a> {
    /// Makes a tally without votes.
    pub(crate) fn new(policy: &'a Policy) -> Self {
        let learned = LearnedInference::new(policy.learned().map(AsRef::as_ref));
        Self { policy, votes: Vec::new(), learned, fallbacks: Vec::new() }
    }

    pub(crate) fn add_vote(&mut self, stage: usize, member: &'a Member, vote: &'a Vote) {
        let logits = usable(vote, self.policy.labels().len());
        self.learned.add_vote(vote, logits.is_ok());
        self.votes.push(TalliedVote { member, stage, vote, logits });
    }

    /// Returns the learned parts that could not be used so far.
    pub(crate) fn into_fallbacks(self) -> Vec<Fallback> {
        self.fallbacks
    }

    /// Returns the failure of the first required model that failed.
    pub(crate) fn required_failure(&self) -> Option<Failure> {
        self.votes.iter().find_map(|tallied| {
            let failure = tallied.logits.as_ref().err().filter(|_| tallied.member.is_required())?;
            Some(Failure::RequiredVote {
                stage: tallied.stage,
                model: Arc::clone(tallied.member.model()),
                failure: failure.clone(),
            })
        })
    }

    /// Returns whether a vote of this stage has failed.
    pub(crate) fn lacks_votes_of(&self, stage: usize) -> bool {
        self.votes.iter().any(|tallied| tallied.stage == stage && tallied.logits.is_err())
    }

    /// Fuses the votes into the verdict after the stage `stage`, as if it were the last; `None` if no vote
    /// has succeeded.
    pub(crate) fn fuse(&mut self, stage: usize) -> Option<Verdict> {
        let mut effective_weights = self.effective_weights(stage).into_iter();
        let mut votes = Vec::with_capacity(self.votes.len());
        for tallied in &self.votes {
            let (stage, mut vote) = (tallied.stage, tallied.vote.clone());
            let (calibrated, weight) = match &tallied.logits {
                Ok(logits) => {
                    let weight = effective_weights.next().unwrap_or_default();
                    let calibrated = logits.calibrated(tallied.member.calibration());
                    let calibrated = match weight.inverse_temperature {
                        Some(inverse_temperature) => calibrated.sharpened(inverse_temperature),
                        None => calibrated,
                    };
                    (Some(calibrated), weight.share)
                }
                Err(failure) => {
                    vote.output = Err(failure.clone());
                    (None, 0.0)
                }
            };
            votes.push(FusedVote { vote, stage, calibrated, weight });
        }
        let weighted = votes.iter().filter_map(|vote| Some((vote.calibrated.as_ref()?, vote.weight)));
        let distribution = self.policy.fusion().fuse(weighted)?;
        let mut favourites =
            votes.iter().filter_map(|vote| vote.calibrated.as_ref().map(Distribution::argmax));
        let first = favourites.next();
        let agreement = favourites.all(|label| Some(label) == first);
        let reason = if self.lacks_votes_of(stage) { StopReason::Incomplete } else { StopReason::Exhausted };
        Some(Verdict {
            distribution,
            agreement,
            stage,
            reason,
            burst: false,
            correctness: None,
            skipped: Vec::new(),
            fallbacks: Vec::new(),
            votes,
        })
    }

    /// Estimates the probability that the answer is right, if `rule` asks for it and it can be estimated.
    pub(crate) fn estimate_correctness(&mut self, rule: AcceptRule, answer: &Verdict) -> Option<Probability> {
        rule.correctness()?;
        let estimate = self.learned.correctness(self.models(), &answer.distribution, answer.agreement);
        estimate.map_err(|reason| self.fall_back(LearnedPart::Correctness, answer.stage, reason)).ok()
    }

    /// Returns whether a model of the stage would have a large enough share beside those that have voted.
    pub(crate) fn is_worth_asking(&mut self, index: usize, stage: &Stage) -> bool {
        let Some(least) = stage.min_weight() else { return true };
        let largest = self.largest_share(stage).unwrap_or_else(|reason| {
            self.fall_back(LearnedPart::MinWeight, index, reason);
            let members = self.voters().chain(stage.members());
            largest_of_last(&shares(&members.map(Member::weight).collect::<Vec<Weight>>()), stage)
        });
        largest > least.get()
    }

    /// Returns the same for a stage that would stand in for an earlier one; `false` if the learned weights
    /// cannot be evaluated.
    pub(crate) fn may_stand_in(&self, stage: &Stage) -> bool {
        let is_enough =
            |least: Probability| self.largest_share(stage).is_ok_and(|largest| largest > least.get());
        stage.min_weight().is_none_or(is_enough)
    }

    /// Returns the largest share that the learned weights give to a model of the stage.
    fn largest_share(&self, stage: &Stage) -> Result<f64, FallbackReason> {
        let models = self.models().chain(stage.members().iter().map(Member::model));
        let shares: Vec<f64> =
            self.learned.effective_weights(models)?.iter().map(|weight| weight.share).collect();
        Ok(largest_of_last(&shares, stage))
    }

    /// Returns the effective weight of each successful vote.
    fn effective_weights(&mut self, stage: usize) -> Vec<EffectiveWeight> {
        if self.policy.fusion() == FusionMethod::Learned && self.voters().next().is_some() {
            match self.learned.effective_weights(self.models()) {
                Ok(effective_weights) => return effective_weights,
                // One vote is the whole answer: stages before the backbone's are not meant to have anything
                // else.
                Err(FallbackReason::BackboneNotAsked) if self.voters().count() == 1 => {}
                Err(reason) => self.fall_back(LearnedPart::Weights, stage, reason),
            }
        }
        let shares = shares(&self.voters().map(Member::weight).collect::<Vec<Weight>>());
        shares.into_iter().map(|share| EffectiveWeight { share, inverse_temperature: None }).collect()
    }

    fn fall_back(&mut self, part: LearnedPart, stage: usize, reason: FallbackReason) {
        self.fallbacks.push(Fallback { part, stage, reason });
    }

    /// Returns the members whose votes have succeeded.
    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.votes.iter().filter(|tallied| tallied.logits.is_ok()).map(|tallied| tallied.member)
    }

    fn models(&self) -> impl Iterator<Item = &Arc<str>> {
        self.voters().map(Member::model)
    }
}

/// Returns the largest of the shares of the stage's models, which come last.
fn largest_of_last(shares: &[f64], stage: &Stage) -> f64 {
    shares.iter().rev().take(stage.members().len()).copied().fold(0.0, f64::max)
}

/// Returns the logits of a vote, or the reason why it has none for this number of labels.
pub(crate) fn usable(vote: &Vote, labels: usize) -> Result<Logits<'_>, VoteFailure> {
    let output = vote.output.as_ref().map_err(Clone::clone)?;
    output.logits(labels).map_err(|error| VoteFailure::new(error.to_string()))
}
