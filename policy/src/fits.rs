//! The check of a verdict that comes from elsewhere, such as a cache that others can write to, against the
//! policy that asks.

use crate::cascade::Member;
use crate::fusion::{FusionMethod, shares};
use crate::learned::LearnedPart;
use crate::policy::Policy;
use crate::probability::Weight;
use crate::verdict::{Fallback, FusedVote, StopReason, Verdict};
use crate::vote::Source;

/// The largest difference of a share from the one that the policy gives: rounding makes a smaller one.
const SHARE_ERROR_MAX: f64 = 1e-9;

/// Returns whether `verdict` has the form of a cached verdict by `policy`: a probability for each label, and
/// exactly the stages, models and shares that lead to where it stopped.
///
/// Nothing that depends on a verdict that fits has to check an index again. Whether its probabilities follow
/// from its votes is not checked: that would be to decide again.
pub fn verdict_fits(verdict: &Verdict, policy: &Policy) -> bool {
    let labels = policy.labels().len();
    verdict.is_lasting()
        && verdict.distribution.probabilities().len() == labels
        && stages_fit(verdict, policy)
        && fallbacks_fit(verdict, policy)
        && verdict.votes.iter().all(|vote| vote_fits(vote, labels))
        && members_fit(verdict, policy)
}

/// Checks that the cascade can have stopped there, having skipped those stages.
fn stages_fit(verdict: &Verdict, policy: &Policy) -> bool {
    let stages = policy.stages();
    let Some(last) = stages.get(verdict.stage) else { return false };
    let may_be_skipped = |index: &usize| {
        *index != verdict.stage && stages.get(*index).is_some_and(|stage| stage.min_weight().is_some())
    };
    let skipped = &verdict.skipped;
    let reason_fits = match verdict.reason {
        StopReason::Accepted => last.accept().is_some() && skipped.iter().all(|index| *index < verdict.stage),
        StopReason::Exhausted => (verdict.stage + 1..stages.len()).all(|index| skipped.contains(&index)),
        // Such a verdict is not kept.
        StopReason::Incomplete => false,
    };
    reason_fits
        && skipped.is_sorted_by(|one, next| one < next)
        && skipped.iter().all(may_be_skipped)
        && (verdict.correctness.is_none() || last.accept().is_some_and(|rule| rule.correctness().is_some()))
}

/// Checks that each fallback is one of a learned part that the policy asks for.
fn fallbacks_fit(verdict: &Verdict, policy: &Policy) -> bool {
    verdict.fallbacks.iter().all(|Fallback { part, stage, .. }| {
        policy.stages().get(*stage).is_some_and(|stage| match part {
            LearnedPart::Weights => policy.fusion() == FusionMethod::Learned,
            LearnedPart::Correctness => stage.accept().is_some_and(|rule| rule.correctness().is_some()),
            LearnedPart::MinWeight => stage.min_weight().is_some(),
        })
    })
}

fn vote_fits(FusedVote { vote, calibrated, .. }: &FusedVote, labels: usize) -> bool {
    let has_labels = calibrated.as_ref().is_some_and(|calibrated| calibrated.probabilities().len() == labels);
    let output_fits = vote.output.as_ref().is_ok_and(|output| output.fits(labels, None));
    has_labels && output_fits && vote.source == Source::Cached
}

/// Checks that the votes are those of every member of the stages that were asked, in their order, and that
/// each has its share.
fn members_fit(verdict: &Verdict, policy: &Policy) -> bool {
    let asked: Vec<(usize, &Member)> = policy
        .stages()
        .iter()
        .enumerate()
        .take(verdict.stage + 1)
        .filter(|(index, _)| !verdict.skipped.contains(index))
        .flat_map(|(index, stage)| stage.members().iter().map(move |member| (index, member)))
        .collect();
    let votes = verdict.votes.iter().map(|fused| (fused.stage, &fused.vote.model));
    if !votes.eq(asked.iter().map(|(stage, member)| (*stage, member.model()))) {
        return false;
    }
    let weights = verdict.votes.iter().map(|fused| fused.weight);
    match policy.fusion() {
        FusionMethod::Linear | FusionMethod::LogLinear => {
            let configured: Vec<Weight> = asked.iter().map(|(_, member)| member.weight()).collect();
            weights.zip(shares(&configured)).all(|(weight, share)| (weight - share).abs() <= SHARE_ERROR_MAX)
        }
        FusionMethod::Learned => {
            weights.clone().all(|weight| weight >= 0.0)
                && (weights.sum::<f64>() - 1.0).abs() <= SHARE_ERROR_MAX
        }
    }
}
