//! Defines the values of the cache, and their encoding in Redis.

use std::sync::Arc;

use concord_policy::{FusedVote, ModelOutput, Verdict};
use serde::{Deserialize, Serialize};

/// A value of the cache. Nothing failed is ever one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Value {
    /// The output of a model, uncalibrated.
    Vote(ModelOutput),
    /// A complete verdict: every model that was asked has voted.
    Verdict(Arc<Verdict>),
}

/// The first byte of an encoded value. Every change of the cached types, including those of the policy, needs
/// a new one; values of another format are a miss.
const FORMAT: u8 = 2;

/// The number of bytes of the payload's digest that follow: enough to tell our values from those of other
/// programs.
const CHECKSUM_BYTES: usize = 8;

impl Value {
    /// Returns about how many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Vote(output) => output_bytes(output),
            Self::Verdict(verdict) => {
                let distribution = size_of_val(verdict.distribution.probabilities());
                let outputs: usize = verdict
                    .votes
                    .iter()
                    .filter_map(|fused| fused.vote.output.as_ref().ok())
                    .map(output_bytes)
                    .sum();
                size_of::<Verdict>()
                    + distribution
                    + size_of_val(verdict.skipped.as_slice())
                    + size_of_val(verdict.fallbacks.as_slice())
                    + verdict.votes.len() * (size_of::<FusedVote>() + distribution)
                    + outputs
            }
        }
    }

    /// Returns the format, a checksum and the value as bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Writing to memory fails only for types that say so themselves; these do not.
        let payload = postcard::to_stdvec(self).unwrap_or_default();
        [&[FORMAT], checksum(&payload).as_slice(), payload.as_slice()].concat()
    }

    /// Returns the value of these bytes; `None` for bytes that [`Value::encode`] did not write.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&format, bytes) = bytes.split_first()?;
        let (sum, payload) = bytes.split_at_checked(CHECKSUM_BYTES)?;
        if format != FORMAT || sum != checksum(payload) {
            return None;
        }
        postcard::from_bytes(payload).ok()
    }
}

fn output_bytes(output: &ModelOutput) -> usize {
    size_of_val(output.logits.as_slice()) + output.evidence.heap_bytes()
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::hash(payload).as_bytes()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use concord_policy::{
        Distribution, Evidence, Fallback, FallbackReason, LearnedPart, Probability, Region, Shape,
        StopReason, Vote,
    };

    use super::*;

    fn output() -> ModelOutput {
        let regions = Arc::from([
            Region { label: "sign".to_owned(), shape: Shape::Quad([0.5; 8]) },
            Region { label: "cone".to_owned(), shape: Shape::Box([1.0, 2.0, 3.0, 4.5]) },
        ]);
        let evidence = Evidence { regions, feature: Some(Arc::from([0.5, -2.0])), uncertainty: Some(0.25) };
        ModelOutput { logits: vec![0.25, -1e-30], evidence }
    }

    fn verdict() -> Verdict {
        let distribution = Distribution::new(vec![0.1, 0.9]).unwrap();
        let vote = FusedVote {
            vote: Vote::known(Arc::from("dinov3"), output()),
            stage: 0,
            calibrated: Some(distribution.clone()),
            weight: 1.0,
        };
        let reason = FallbackReason::NotFitted;
        Verdict {
            distribution,
            agreement: true,
            stage: 0,
            reason: StopReason::Accepted,
            burst: false,
            correctness: Probability::new(0.75),
            skipped: vec![2],
            fallbacks: vec![Fallback { part: LearnedPart::Weights, stage: 1, reason }],
            votes: vec![vote],
        }
    }

    fn values() -> [Value; 2] {
        [Value::Vote(output()), Value::Verdict(Arc::new(verdict()))]
    }

    #[test]
    fn a_value_survives_its_bytes_exactly() {
        for value in values() {
            assert_eq!(Value::decode(&value.encode()), Some(value));
        }
    }

    #[test]
    fn numbers_that_the_policy_refuses_are_no_value() {
        let encoded = |value: &Value| {
            let payload = postcard::to_stdvec(value).unwrap();
            [&[FORMAT], checksum(&payload).as_slice(), payload.as_slice()].concat()
        };
        for logit in [f32::NAN, f32::INFINITY] {
            let value = Value::Vote(ModelOutput::from(vec![0.5, logit]));
            assert_eq!(Value::decode(&encoded(&value)), None, "{logit}");
        }
        assert_eq!(Value::decode(&encoded(&Value::Vote(ModelOutput::from(vec![])))), None, "no logits");
        let bytes = encoded(&Value::Verdict(Arc::new(verdict())));
        let probability = 0.9_f64.to_le_bytes();
        let position = bytes.windows(8).position(|window| window == probability).unwrap();
        let mut payload = bytes[1 + CHECKSUM_BYTES..].to_vec();
        payload[position - 1 - CHECKSUM_BYTES..][..8].copy_from_slice(&0.8_f64.to_le_bytes());
        let changed = [&[FORMAT], checksum(&payload).as_slice(), payload.as_slice()].concat();
        assert_eq!(Value::decode(&changed), None, "probabilities whose sum is not 1");
    }

    #[test]
    fn bytes_that_were_cut_changed_or_written_by_others_are_no_value() {
        for value in values() {
            let bytes = value.encode();
            for length in 0..bytes.len() {
                assert_eq!(Value::decode(&bytes[..length]), None, "{length} bytes");
            }
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] ^= 0x10;
                assert_eq!(Value::decode(&changed), None, "byte {position}");
            }
        }
        for foreign in [&b"PONG"[..], b"{\"label\": \"road work\"}", &[0; 64]] {
            assert_eq!(Value::decode(foreign), None);
        }
    }
}
