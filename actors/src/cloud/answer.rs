//! The answer that every protocol is reduced to: logits over the labels, and tokens to pay for.

use serde::Deserialize;

/// An answer that was understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RemoteAnswer {
    /// The logarithm of each label's probability.
    pub(super) logits: Vec<f32>,
    pub(super) usage: Usage,
}

/// The cost of an answer in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Usage {
    #[serde(alias = "prompt_tokens")]
    pub(super) input_tokens: u64,
    #[serde(alias = "completion_tokens")]
    pub(super) output_tokens: u64,
}

/// An answer that cannot be used, in words for people. It is a failed vote, never a guess.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// The server gives no token probabilities, or they do not tell the answers apart: it is asked for JSON
    /// instead.
    #[error("the server's token probabilities say nothing about the answers")]
    NoProbabilities(Usage),
    /// Anything else.
    #[error("the server's answer cannot be used: {0}")]
    Other(String, Usage),
}

impl Unreadable {
    /// Returns what it cost all the same.
    pub(super) fn usage(&self) -> Usage {
        match self {
            Self::NoProbabilities(usage) | Self::Other(_, usage) => *usage,
        }
    }
}

/// The least probability of an answer: a logit of a probability of 0 would be infinite.
const PROBABILITY_MIN: f64 = 1e-4;

/// Returns the logits for one answer's probability, where the others share the rest evenly.
pub(super) fn one_of(count: usize, index: usize, probability: f64) -> Vec<f32> {
    let chosen = probability.clamp(PROBABILITY_MIN, 1.0 - PROBABILITY_MIN);
    let other = (1.0 - chosen) / (count.saturating_sub(1).max(1)) as f64;
    (0..count).map(|label| if label == index { chosen.ln() } else { other.ln() } as f32).collect()
}

/// Returns the logits of probabilities.
pub(super) fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|probability| probability.max(PROBABILITY_MIN / 100.0).ln() as f32).collect()
}
