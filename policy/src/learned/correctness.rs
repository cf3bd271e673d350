//! Estimates the probability that a verdict is correct.

use super::network::Network;
use crate::probability::{Distribution, Probability};

/// A network that estimates the probability that an answer is correct, from the answer and the feature of its
/// image.
#[derive(Debug, Clone, PartialEq)]
pub struct CorrectnessEstimator(Network);

impl CorrectnessEstimator {
    /// The number of values about the answer that precede the feature in the network's input.
    pub const NUMBERS: usize = 4;

    /// Wraps a network with [`Self::input`] as input and the log-odds of correctness as output.
    pub fn new(network: Network) -> Self {
        Self(network)
    }

    /// Returns the network.
    pub fn network(&self) -> &Network {
        &self.0
    }

    /// Returns the input of the network: the log-odds of the confidence, the entropy as a share of the
    /// largest one, the margin to the second label, 1 where all votes agree and otherwise 0, and the feature.
    pub fn input(answer: &Distribution, agreement: bool, feature: &[f32]) -> Vec<f32> {
        /// The least distance of a confidence from 1, whose log-odds would be infinite.
        const DOUBT_MIN: f64 = 1e-9;
        let probabilities = answer.probabilities();
        let confidence = answer.confidence().get();
        let second = probabilities
            .iter()
            .enumerate()
            .filter(|(label, _)| *label != answer.argmax())
            .map(|(_, probability)| *probability)
            .fold(0.0, f64::max);
        let entropy: f64 =
            probabilities.iter().filter(|probability| **probability > 0.0).map(|p| -p * p.ln()).sum();
        let doubt = (1.0 - confidence).max(DOUBT_MIN);
        let numbers: [f64; Self::NUMBERS] = [
            (confidence / doubt).ln(),
            entropy / (probabilities.len() as f64).ln(),
            confidence - second,
            f64::from(u8::from(agreement)),
        ];
        numbers.iter().map(|number| *number as f32).chain(feature.iter().copied()).collect()
    }

    /// Returns the probability that the answer is right; `None` where the feature is not one of the backbone
    /// that the network was fitted to.
    pub fn estimate(&self, answer: &Distribution, agreement: bool, feature: &[f32]) -> Option<Probability> {
        let log_odds = *self.0.forward(&Self::input(answer, agreement, feature))?.first()?;
        Probability::new(1.0 / (1.0 + (-f64::from(log_odds)).exp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_says_how_sure_the_answer_is() {
        let answer = Distribution::new(vec![0.5, 0.5, 0.0]).unwrap();
        let input = CorrectnessEstimator::input(&answer, false, &[7.0]);
        let entropy = 2.0_f32.ln() / 3.0_f32.ln();
        assert_eq!(input.len(), CorrectnessEstimator::NUMBERS + 1);
        for (found, expected) in input.iter().zip([0.0, entropy, 0.0, 0.0, 7.0]) {
            assert!((found - expected).abs() < 1e-6, "{input:?}");
        }
        let certain = Distribution::new(vec![1.0, 0.0]).unwrap();
        assert!(CorrectnessEstimator::input(&certain, true, &[]).iter().all(|number| number.is_finite()));
    }
}
