//! What the cascade would come to with other thresholds.

use concord_policy::Policy;

use super::compare::{Judged, answer};
use super::thresholds::{Outcome, StageAnswer, curve, rules};

/// Costs and accuracies of a policy with other thresholds, the cheapest first; `None` where a vote is none. They are found on
/// the pictures that they are judged by, so what they promise is a little too good.
pub(super) fn curve_of(policy: &Policy, pictures: &[Judged<'_>]) -> Option<Vec<Outcome>> {
    let by_stage: Vec<Policy> =
        (0..policy.stages().len()).map(|stage| policy.as_far_as(stage)).collect::<Option<_>>()?;
    let of_picture = |picture: &Judged<'_>| -> Option<Vec<StageAnswer>> {
        by_stage.iter().map(|so_far| stage_answer(so_far, policy, picture)).collect()
    };
    let answers: Vec<Vec<StageAnswer>> = pictures.iter().map(of_picture).collect::<Option<_>>()?;
    let views: Vec<&[StageAnswer]> = answers.iter().map(Vec::as_slice).collect();
    Some(curve(&views, &rules(policy)))
}

/// What asking these models of `whole` comes to.
pub(crate) fn stage_answer(policy: &Policy, whole: &Policy, picture: &Judged<'_>) -> Option<StageAnswer> {
    let answer = answer(policy, whole, picture)?;
    let is_asked = |model: &str| policy.members().any(|asked| **asked.model() == *model);
    let asked = whole.members().enumerate().filter(|(_, member)| is_asked(member.model()));
    Some(StageAnswer {
        cost: asked.map(|(member, _)| picture.cost(member)).sum(),
        confidence: answer.gate.unwrap_or(answer.confidence()).get(),
        agreement: answer.agreement,
        is_right: answer.label() == picture.label,
        probabilities: answer.distribution.probabilities().to_vec(),
    })
}
