//! Defines the values of the cache, and their encoding in Redis.

use std::sync::Arc;

use concord_policy::{FusedVote, ModelOutput, Verdict};
use serde::{Deserialize, Serialize};

use super::seal::{Seal, TAG_BYTES};
use crate::digest::Digest;

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
const FORMAT: u8 = 3;

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

    /// Returns the format, the tag and the value as bytes, to be stored under `key`.
    pub(super) fn encode(&self, seal: &Seal, key: &Digest) -> Vec<u8> {
        // Writing to memory fails only for types that say so themselves; these do not.
        let payload = postcard::to_stdvec(self).unwrap_or_default();
        [&[FORMAT], seal.tag(key, &payload).as_bytes().as_slice(), payload.as_slice()].concat()
    }

    /// Returns the value of these bytes; `None` for bytes that [`Value::encode`] did not write with the same
    /// secret under the same key.
    pub(super) fn decode(seal: &Seal, key: &Digest, bytes: &[u8]) -> Option<Self> {
        let (&format, bytes) = bytes.split_first()?;
        let (tag, payload) = bytes.split_first_chunk::<TAG_BYTES>()?;
        if format != FORMAT || seal.tag(key, payload) != *tag {
            return None;
        }
        postcard::from_bytes(payload).ok()
    }
}

fn output_bytes(output: &ModelOutput) -> usize {
    size_of_val(output.logits.as_slice()) + output.evidence.heap_bytes()
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

    fn seal() -> Seal {
        Seal::new(Some(b"secret"))
    }

    fn key() -> Digest {
        Digest::of(b"an image and a task")
    }

    /// Returns the bytes of a payload as [`Value::encode`] would seal it.
    fn sealed(payload: &[u8]) -> Vec<u8> {
        [&[FORMAT], seal().tag(&key(), payload).as_bytes().as_slice(), payload].concat()
    }

    fn decoded(bytes: &[u8]) -> Option<Value> {
        Value::decode(&seal(), &key(), bytes)
    }

    #[test]
    fn a_value_survives_its_bytes_exactly() {
        for value in values() {
            assert_eq!(decoded(&value.encode(&seal(), &key())), Some(value));
        }
    }

    #[test]
    fn numbers_that_the_policy_refuses_are_no_value() {
        let encoded = |value: &Value| value.encode(&seal(), &key());
        for logit in [f32::NAN, f32::INFINITY] {
            let value = Value::Vote(ModelOutput::from(vec![0.5, logit]));
            assert_eq!(decoded(&encoded(&value)), None, "{logit}");
        }
        assert_eq!(decoded(&encoded(&Value::Vote(ModelOutput::from(vec![])))), None, "no logits");
        let mut payload = postcard::to_stdvec(&Value::Verdict(Arc::new(verdict()))).unwrap();
        let probability = 0.9_f64.to_le_bytes();
        let position = payload.windows(8).position(|window| window == probability).unwrap();
        payload[position..][..8].copy_from_slice(&0.8_f64.to_le_bytes());
        assert_eq!(decoded(&sealed(&payload)), None, "probabilities whose sum is not 1");
    }

    #[test]
    fn bytes_that_were_cut_changed_or_written_by_others_are_no_value() {
        for value in values() {
            let bytes = value.encode(&seal(), &key());
            for length in 0..bytes.len() {
                assert_eq!(decoded(&bytes[..length]), None, "{length} bytes");
            }
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] ^= 0x10;
                assert_eq!(decoded(&changed), None, "byte {position}");
            }
        }
        for foreign in [&b"PONG"[..], b"{\"label\": \"road work\"}", &[0; 64]] {
            assert_eq!(decoded(foreign), None);
        }
    }

    #[test]
    fn a_value_counts_only_under_its_own_key_and_with_the_same_secret() {
        let plain = Seal::new(None);
        for value in values() {
            let bytes = value.encode(&seal(), &key());
            assert_eq!(Value::decode(&seal(), &Digest::of(b"another image"), &bytes), None, "copied");
            assert_eq!(Value::decode(&Seal::new(Some(b"other")), &key(), &bytes), None, "another secret");
            assert_eq!(Value::decode(&plain, &key(), &bytes), None, "no secret");
            let bytes = value.encode(&plain, &key());
            assert_eq!(decoded(&bytes), None, "written by those who do not know the secret");
            assert_eq!(Value::decode(&plain, &Digest::of(b"another image"), &bytes), None, "copied");
            assert_eq!(Value::decode(&plain, &key(), &bytes), Some(value));
        }
    }
}
