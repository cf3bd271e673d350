//! The decision: which stage is asked next, or the verdict.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cascade::{Member, Stage};
use crate::policy::Policy;
use crate::tally::{VoteTally, usable};
use crate::verdict::{Failure, StopReason, Verdict};
use crate::vote::Vote;

/// The next step of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Ask the models of this stage that have not voted.
    Ask {
        /// Its index in the policy.
        stage: usize,
    },
    /// The cascade ends with a verdict.
    Verdict(Verdict),
    /// The cascade ends without a verdict.
    Failed(Failure),
}

/// The state that a decision depends on besides the votes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The number of images that wait for each model or run in it; 0 for a model that is not in the map.
    pub queue_depths: BTreeMap<Arc<str>, usize>,
}

/// Decides by `policy` what follows from `votes`.
///
/// Stages are judged in their order, each on the votes of the stages up to it, whatever the order of `votes`:
/// votes of later stages, of models that the policy does not ask, and a model's second vote change nothing.
/// So the answer to all votes at once is the answer of the cascade that would have asked for them one by one.
///
/// A stage is judged only when all its models have voted, if only to say that they failed; until then the
/// decision is to ask it. A vote with another number of logits than the policy has labels counts as failed.
///
/// Where a stage that has not been asked is busier than a later stage's `burst_queue_depth`, the later stage
/// is asked instead; once one of its votes has succeeded, the stages before it that have not been asked are
/// left out.
///
/// A stage whose models would have too small a share (`min_weight`) is left out, even if there are votes of
/// it, unless there is no answer yet.
pub fn decide(policy: &Policy, votes: &[Vote], context: &Context) -> Decision {
    let mut tally = VoteTally::new(policy);
    let mut answer = None;
    let (mut burst, mut skipped) = (false, Vec::new());
    for (index, stage) in policy.stages().iter().enumerate() {
        if answer.is_some() && !tally.is_worth_asking(index, stage) {
            skipped.push(index);
            continue;
        }
        if !stage.is_asked(votes) {
            match stand_in(index, &tally, policy, votes, context) {
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
            tally.add_vote(index, member, vote);
        }
        if let Some(failure) = tally.required_failure() {
            return Decision::Failed(failure);
        }
        answer = tally.fuse(index);
        let (Some(fused), Some(rule)) = (&mut answer, stage.accept()) else { continue };
        fused.correctness = tally.estimate_correctness(rule, fused);
        if rule.accepts(fused) {
            fused.reason = StopReason::Accepted;
            break;
        }
    }
    let fallbacks = tally.into_fallbacks();
    answer.map_or(Decision::Failed(Failure::NoVote), |answer| {
        Decision::Verdict(Verdict { burst, skipped, fallbacks, ..answer })
    })
}

/// A later stage that stands in for one that has not been asked.
enum StandIn {
    /// The later stage has voted.
    Voted,
    /// The later stage, given by its index, has not been asked, and may be.
    Free(usize),
}

/// Returns the later stage that stands in for the stage `index`, if one does.
fn stand_in(
    index: usize,
    tally: &VoteTally<'_>,
    policy: &Policy,
    votes: &[Vote],
    context: &Context,
) -> Option<StandIn> {
    let later = policy.stages().iter().enumerate().skip(index + 1);
    let mut bursts = later.filter_map(|(later, stage)| Some((later, stage, stage.burst_queue_depth()?)));
    let depth_of = |member: &Member| context.queue_depths.get(member.model()).copied().unwrap_or(0);
    let depth = policy.stages()[index].members().iter().map(depth_of).max().unwrap_or(0);
    bursts.find_map(|(later, stage, limit)| {
        if !stage.is_asked(votes) {
            let is_free = depth > limit && tally.may_stand_in(stage);
            return is_free.then_some(StandIn::Free(later));
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
