//! The curve of cost and accuracy of the cascade over other thresholds.

use concord_policy::Policy;

use super::compare::{LabeledExample, answer};
use super::thresholds::{Outcome, StageAnswer, curve, rules};

/// Returns the costs and accuracies of a policy with other thresholds, the cheapest first; `None` if a vote
/// is invalid. The thresholds are searched on the images that they are evaluated on, so the curve is a little
/// too optimistic.
pub(super) fn curve_of(policy: &Policy, images: &[LabeledExample<'_>]) -> Option<Vec<Outcome>> {
    let by_stage: Vec<Policy> =
        (0..policy.stages().len()).map(|stage| policy.as_far_as(stage)).collect::<Option<_>>()?;
    let of_image = |image: &LabeledExample<'_>| -> Option<Vec<StageAnswer>> {
        by_stage.iter().map(|so_far| stage_answer(so_far, policy, image)).collect()
    };
    let answers: Vec<Vec<StageAnswer>> = images.iter().map(of_image).collect::<Option<_>>()?;
    let views: Vec<&[StageAnswer]> = answers.iter().map(Vec::as_slice).collect();
    Some(curve(&views, &rules(policy)))
}

/// Returns the answer of `policy`, some of the models of `whole`, for an image, and its cost; `None` if a
/// vote is invalid.
pub(crate) fn stage_answer(
    policy: &Policy,
    whole: &Policy,
    image: &LabeledExample<'_>,
) -> Option<StageAnswer> {
    let answer = answer(policy, whole, image)?;
    let is_asked = |model: &str| policy.members().any(|asked| **asked.model() == *model);
    let asked = whole.members().enumerate().filter(|(_, member)| is_asked(member.model()));
    Some(StageAnswer {
        cost: asked.map(|(member, _)| image.cost(member)).sum(),
        confidence: answer.correctness.unwrap_or(answer.confidence()).get(),
        agreement: answer.agreement,
        is_right: answer.label() == image.label,
        probabilities: answer.distribution.probabilities().to_vec(),
    })
}
