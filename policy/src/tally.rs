//! The votes that have been heard so far, and what they come to.

use std::sync::Arc;

use crate::cascade::{AcceptRule, Member, Stage};
use crate::fusion::{Belief, FusionMethod, shares};
use crate::learned::{LearnedPart, Reading, Unread, Weighing};
use crate::policy::Policy;
use crate::probability::{Logits, Probability, Weight};
use crate::verdict::{Answer, Failure, Fallback, Opinion, Reason};
use crate::vote::{Vote, VoteFailure};

/// Votes in the order of the policy, and what the learned networks say beside them.
pub(crate) struct Hearing<'a> {
    policy: &'a Policy,
    heard: Vec<Heard<'a>>,
    reading: Reading<'a>,
    fallbacks: Vec<Fallback>,
}

/// A vote beside the policy's view of its model.
struct Heard<'a> {
    member: &'a Member,
    stage: usize,
    vote: &'a Vote,
    logits: Result<&'a Logits, VoteFailure>,
}

impl<'a> Hearing<'a> {
    /// Before any vote.
    pub(crate) fn new(policy: &'a Policy) -> Self {
        let reading = Reading::of(policy.learned().map(AsRef::as_ref));
        Self { policy, heard: Vec::new(), reading, fallbacks: Vec::new() }
    }

    pub(crate) fn hear(&mut self, stage: usize, member: &'a Member, vote: &'a Vote) {
        let logits = usable(vote, self.policy.labels().len());
        self.reading.hear(vote, logits.is_ok());
        self.heard.push(Heard { member, stage, vote, logits });
    }

    /// The learned parts that could not be used so far.
    pub(crate) fn into_fallbacks(self) -> Vec<Fallback> {
        self.fallbacks
    }

    /// The failure of a model without whose vote there is no answer.
    pub(crate) fn required_failure(&self) -> Option<Failure> {
        self.heard.iter().find_map(|heard| {
            let failure = heard.logits.as_ref().err().filter(|_| heard.member.is_required())?;
            Some(Failure::RequiredVote {
                stage: heard.stage,
                model: Arc::clone(heard.member.model()),
                failure: failure.clone(),
            })
        })
    }

    /// Whether a model of this stage has given no vote.
    pub(crate) fn lacks_votes_of(&self, stage: usize) -> bool {
        self.heard.iter().any(|heard| heard.stage == stage && heard.logits.is_err())
    }

    /// The answer after the stage `stage`, as if it were the last; `None` when no vote has succeeded.
    pub(crate) fn fuse(&mut self, stage: usize) -> Option<Answer> {
        let mut weighings = self.weighings(stage).into_iter();
        let mut opinions = Vec::with_capacity(self.heard.len());
        for one in &self.heard {
            let belief = one.logits.clone().map(|logits| {
                let calibrated = logits.calibrated(one.member.calibration());
                let Weighing { share, inverse_temperature } = weighings.next().unwrap_or_default();
                let distribution = match inverse_temperature {
                    Some(inverse_temperature) => calibrated.sharpened(inverse_temperature),
                    None => calibrated,
                };
                Belief { distribution, weight: share }
            });
            let Vote { model, evidence, cost, .. } = one.vote;
            let (model, evidence) = (Arc::clone(model), evidence.clone());
            opinions.push(Opinion { model, stage: one.stage, belief, evidence, cost: *cost });
        }
        let beliefs = || opinions.iter().filter_map(|opinion| opinion.belief.as_ref().ok());
        let distribution = self.policy.fusion().fuse(beliefs())?;
        let mut favourites = beliefs().map(|belief| belief.distribution.argmax());
        let first = favourites.next();
        let agreement = favourites.all(|label| Some(label) == first);
        let reason = if self.lacks_votes_of(stage) { Reason::Incomplete } else { Reason::Exhausted };
        Some(Answer {
            distribution,
            agreement,
            stage,
            reason,
            burst: false,
            gate: None,
            skipped: Vec::new(),
            fallbacks: Vec::new(),
            opinions,
        })
    }

    /// What the gate says of this answer, where `rule` asks it.
    pub(crate) fn ask_gate(&mut self, rule: AcceptRule, answer: &Answer) -> Option<Probability> {
        rule.gate()?;
        let read = self.reading.gate(self.models(), &answer.distribution, answer.agreement);
        read.map_err(|why| self.falls_back(LearnedPart::Gate, answer.stage, why)).ok()
    }

    /// Whether the models of a stage would count for enough beside those that have voted.
    pub(crate) fn is_worth_asking(&mut self, index: usize, stage: &Stage) -> bool {
        let Some(least) = stage.min_weight() else { return true };
        let largest = self.largest_share(stage).unwrap_or_else(|why| {
            self.falls_back(LearnedPart::MinWeight, index, why);
            let members = self.voters().chain(stage.members());
            largest_of_last(&shares(&members.map(Member::weight).collect::<Vec<Weight>>()), stage)
        });
        largest > least.get()
    }

    /// The same of a stage that would stand in for an earlier one: it is not, where that cannot be read.
    pub(crate) fn may_stand_in(&self, stage: &Stage) -> bool {
        let is_enough =
            |least: Probability| self.largest_share(stage).is_ok_and(|largest| largest > least.get());
        stage.min_weight().is_none_or(is_enough)
    }

    /// The largest share that the learned weights give to a model of the stage.
    fn largest_share(&self, stage: &Stage) -> Result<f64, Unread> {
        let models = self.models().chain(stage.members().iter().map(Member::model));
        let shares: Vec<f64> =
            self.reading.weighings(models)?.iter().map(|weighing| weighing.share).collect();
        Ok(largest_of_last(&shares, stage))
    }

    /// What is made of each successful vote.
    fn weighings(&mut self, stage: usize) -> Vec<Weighing> {
        if self.policy.fusion() == FusionMethod::Learned && self.voters().next().is_some() {
            match self.reading.weighings(self.models()) {
                Ok(weighings) => return weighings,
                // One vote is the whole answer, and stages before the backbone's were never to have anything else.
                Err(Unread::BackboneNotAsked) if self.voters().count() == 1 => {}
                Err(why) => self.falls_back(LearnedPart::Weights, stage, why),
            }
        }
        let shares = shares(&self.voters().map(Member::weight).collect::<Vec<Weight>>());
        shares.into_iter().map(|share| Weighing { share, inverse_temperature: None }).collect()
    }

    fn falls_back(&mut self, part: LearnedPart, stage: usize, why: Unread) {
        self.fallbacks.push(Fallback { part, stage, why });
    }

    /// Those whose votes have succeeded.
    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.heard.iter().filter(|heard| heard.logits.is_ok()).map(|heard| heard.member)
    }

    fn models(&self) -> impl Iterator<Item = &Arc<str>> {
        self.voters().map(Member::model)
    }
}

/// The largest of the shares that belong to the stage, whose models come last.
fn largest_of_last(shares: &[f64], stage: &Stage) -> f64 {
    shares.iter().rev().take(stage.members().len()).copied().fold(0.0, f64::max)
}

/// What a vote says, where it says something about these labels.
pub(crate) fn usable(vote: &Vote, labels: usize) -> Result<&Logits, VoteFailure> {
    let logits = vote.outcome.as_ref().map_err(Clone::clone)?;
    let found = logits.values().len();
    if found == labels {
        Ok(logits)
    } else {
        Err(VoteFailure::new(format!("{found} logits for {labels} labels")))
    }
}
