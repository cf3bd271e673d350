//! What is kept, and the bytes that it is in Redis.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use concord_policy::{
    Answer, Belief, Cost, Distribution, Evidence, Fallback, Logits, Opinion, Probability, Reason, Region,
    Shape,
};

/// A value of the cache. Nothing failed is ever one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Uncalibrated, and what was found.
    Vote(KnownVote),
    /// Complete: every model that was asked has voted.
    Verdict(Arc<Answer>),
}

/// A vote as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KnownVote {
    pub(crate) logits: Logits,
    pub(crate) evidence: Evidence,
}

/// How many bytes of the payload's digest stand before it: enough to tell ours from rubbish.
const CHECKSUM_BYTES: usize = 8;

/// The form in which values are written. Changing it needs no migration: what does not decode is a miss.
#[derive(Serialize, Deserialize)]
enum Stored {
    Vote {
        logits: Vec<f32>,
        evidence: StoredEvidence,
    },
    Verdict {
        stage: u32,
        reason: Reason,
        agreement: bool,
        gate: Option<f64>,
        skipped: Vec<u32>,
        fallbacks: Vec<Fallback>,
        distribution: Vec<f64>,
        opinions: Vec<StoredOpinion>,
    },
}

#[derive(Serialize, Deserialize)]
struct StoredEvidence {
    regions: Vec<StoredRegion>,
    feature: Option<Vec<f32>>,
    uncertainty: Option<f32>,
}

#[derive(Serialize, Deserialize)]
struct StoredRegion {
    label: String,
    shape: Shape,
}

#[derive(Serialize, Deserialize)]
struct StoredOpinion {
    evidence: StoredEvidence,
    model: String,
    stage: u32,
    weight: f64,
    distribution: Vec<f64>,
}

impl Value {
    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Vote(vote) => size_of_val(vote.logits.values()) + evidence_bytes(&vote.evidence),
            Self::Verdict(answer) => {
                let evidence: usize =
                    answer.opinions.iter().map(|opinion| evidence_bytes(&opinion.evidence)).sum();
                let distribution = size_of_val(answer.distribution.probabilities());
                size_of::<Answer>()
                    + evidence
                    + size_of_val(answer.skipped.as_slice())
                    + size_of_val(answer.fallbacks.as_slice())
                    + distribution
                    + answer.opinions.len() * (size_of::<Opinion>() + distribution)
            }
        }
    }

    /// A checksum, and the value.
    pub(super) fn encode(&self) -> Vec<u8> {
        let stored = match self {
            Self::Vote(vote) => Stored::Vote {
                logits: vote.logits.values().to_vec(),
                evidence: StoredEvidence::of(&vote.evidence),
            },
            Self::Verdict(answer) => Stored::of(answer),
        };
        // Writing to memory fails only for types that say so themselves; these do not.
        let payload = postcard::to_stdvec(&stored).unwrap_or_default();
        [&checksum(&payload), payload.as_slice()].concat()
    }

    /// `None` for bytes that [`Value::encode`] did not write.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (sum, payload) = bytes.split_at_checked(CHECKSUM_BYTES)?;
        if sum != checksum(payload) {
            return None;
        }
        postcard::from_bytes::<Stored>(payload).ok()?.into_value()
    }
}

impl Stored {
    fn of(answer: &Answer) -> Self {
        let opinions = answer.opinions.iter().filter_map(|opinion| {
            let belief = opinion.belief.as_ref().ok()?;
            Some(StoredOpinion {
                evidence: StoredEvidence::of(&opinion.evidence),
                model: opinion.model.to_string(),
                stage: u32::try_from(opinion.stage).ok()?,
                weight: belief.weight,
                distribution: belief.distribution.probabilities().to_vec(),
            })
        });
        Self::Verdict {
            stage: u32::try_from(answer.stage).unwrap_or(u32::MAX),
            reason: answer.reason,
            agreement: answer.agreement,
            gate: answer.gate.map(Probability::get),
            skipped: answer.skipped.iter().filter_map(|stage| u32::try_from(*stage).ok()).collect(),
            fallbacks: answer.fallbacks.clone(),
            distribution: answer.distribution.probabilities().to_vec(),
            opinions: opinions.collect(),
        }
    }

    fn into_value(self) -> Option<Value> {
        match self {
            Self::Vote { logits, evidence } => {
                let labels = logits.len();
                let logits = Logits::new(logits, labels).ok()?;
                Some(Value::Vote(KnownVote { logits, evidence: evidence.into_evidence() }))
            }
            Self::Verdict { stage, reason, agreement, gate, skipped, fallbacks, distribution, opinions } => {
                let opinions: Option<Vec<Opinion>> =
                    opinions.into_iter().map(StoredOpinion::into_opinion).collect();
                Some(Value::Verdict(Arc::new(Answer {
                    distribution: Distribution::new(distribution)?,
                    agreement,
                    stage: stage as usize,
                    reason,
                    burst: false,
                    // A number that is no probability is rubbish, as a distribution that is none.
                    gate: gate.map(|gate| Probability::new(gate).ok_or(())).transpose().ok()?,
                    skipped: skipped.into_iter().map(|stage| stage as usize).collect(),
                    fallbacks,
                    opinions: opinions?,
                })))
            }
        }
    }
}

impl StoredOpinion {
    fn into_opinion(self) -> Option<Opinion> {
        let belief = Belief { distribution: Distribution::new(self.distribution)?, weight: self.weight };
        Some(Opinion {
            model: Arc::from(self.model),
            stage: self.stage as usize,
            belief: Ok(belief),
            evidence: self.evidence.into_evidence(),
            cost: Cost::CACHED,
        })
    }
}

impl StoredEvidence {
    fn of(Evidence { regions, feature, uncertainty }: &Evidence) -> Self {
        let region = |Region { label, shape }: &Region| StoredRegion { label: label.clone(), shape: *shape };
        Self {
            regions: regions.iter().map(region).collect(),
            feature: feature.as_ref().map(|feature| feature.to_vec()),
            uncertainty: *uncertainty,
        }
    }

    fn into_evidence(self) -> Evidence {
        let region = |StoredRegion { label, shape }| Region { label, shape };
        Evidence {
            regions: self.regions.into_iter().map(region).collect(),
            feature: self.feature.map(Arc::from),
            uncertainty: self.uncertainty,
        }
    }
}

fn evidence_bytes(Evidence { regions, feature, .. }: &Evidence) -> usize {
    let regions: usize = regions.iter().map(|region| size_of::<Region>() + region.label.len()).sum();
    regions + feature.as_ref().map_or(0, |feature| size_of_val(&**feature))
}

fn checksum(payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::hash(payload).as_bytes()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use concord_policy::{LearnedPart, Unread};

    fn values() -> [Value; 2] {
        let distribution = Distribution::new(vec![0.1, 0.9]).unwrap();
        let opinion = Opinion {
            model: Arc::from("dinov3"),
            stage: 0,
            belief: Ok(Belief { distribution: distribution.clone(), weight: 1.0 }),
            evidence: Evidence {
                regions: Arc::from([Region {
                    label: "cone".to_owned(),
                    shape: Shape::Box([1.0, 2.0, 3.0, 4.5]),
                }]),
                ..Evidence::default()
            },
            cost: Cost::CACHED,
        };
        let regions = Arc::from([Region { label: "sign".to_owned(), shape: Shape::Quad([0.5; 8]) }]);
        let evidence = Evidence { regions, feature: Some(Arc::from([0.5, -2.0])), uncertainty: Some(0.25) };
        let vote = KnownVote { logits: Logits::new(vec![0.25, -1e-30], 2).unwrap(), evidence };
        let answer = Answer {
            distribution,
            agreement: true,
            stage: 0,
            reason: Reason::Accepted,
            burst: false,
            gate: Probability::new(0.75),
            skipped: vec![2],
            fallbacks: vec![Fallback { part: LearnedPart::Weights, stage: 1, why: Unread::NotFitted }],
            opinions: vec![opinion],
        };
        [Value::Vote(vote), Value::Verdict(Arc::new(answer))]
    }

    #[test]
    fn a_value_survives_its_bytes_exactly() {
        for value in values() {
            assert_eq!(Value::decode(&value.encode()), Some(value));
        }
    }

    #[test]
    fn what_was_cut_changed_or_written_by_others_is_no_value() {
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
        for rubbish in [&b"PONG"[..], b"{\"label\": \"road work\"}", &[0; 64]] {
            assert_eq!(Value::decode(rubbish), None);
        }
    }
}
