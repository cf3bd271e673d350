//! The answer that every protocol is reduced to: logits over the labels, or the reason why there is no vote.

/// The reason why an answer of status 200 is no vote. A failed vote is never a guess.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoVote {
    /// The server answers in text and gives no token probabilities, to this question or any other.
    #[error("the server gives no token probabilities")]
    NoProbabilities,
    /// The tokens of this answer begin none of the allowed answers, or do not tell them apart.
    #[error("the model's first words are none of the allowed answers")]
    Undecided,
    /// The server works, and the model did not answer the question.
    #[error("the model did not answer the question: {0}")]
    Declined(String),
    /// The body is not what the protocol has: the server does not work.
    #[error("the server's answer cannot be used: {0}")]
    Unreadable(String),
}

/// The least probability that the allowed answers must have together. Below it the model more probably says
/// something else, and what fell on the answers is noise.
pub(super) const ANSWERED_MIN: f64 = 0.5;
/// The largest sum of probabilities: more is not rounding, and they are none.
pub(super) const SUM_MAX: f64 = 1.1;
/// The least probability of an answer that is given with its probability in words.
const STATED_MIN: f64 = 1e-4;
/// The least probability of an answer: a logit of a probability of 0 would be infinite.
const PROBABILITY_MIN: f64 = 1e-6;

/// Returns the logits for one answer's probability, where the others share the rest evenly.
pub(super) fn one_of(count: usize, index: usize, probability: f64) -> Vec<f32> {
    let chosen = probability.clamp(STATED_MIN, 1.0 - STATED_MIN);
    let other = (1.0 - chosen) / (count.saturating_sub(1).max(1)) as f64;
    (0..count).map(|label| if label == index { chosen.ln() } else { other.ln() } as f32).collect()
}

/// Returns the logits of probabilities.
pub(super) fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|probability| probability.max(PROBABILITY_MIN).ln() as f32).collect()
}
