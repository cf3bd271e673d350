//! Tests the policy through its public interface: from a section to decisions.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "clippy takes only functions marked as tests for tests"
)]

mod decide;
mod faults;
mod fits;
mod layers;
mod learned;
mod properties;

use std::collections::BTreeSet;
use std::sync::Arc;

use concord_policy::{Cost, ModelOutput, Policy, PolicyError, Source, TaskSection, Vote, VoteFailure};
use serde_json::Value;

/// The models of every test's ensemble.
const MODELS: [&str; 4] = ["dinov3", "siglip2", "florence2", "cloud"];

/// Validates a task written as JSON.
fn validate(section: Value) -> Result<Policy, Vec<PolicyError>> {
    let section: TaskSection =
        serde_json::from_value(section).expect("the test's section has the right types");
    Policy::from_section(&section, &BTreeSet::from(MODELS.map(str::to_owned)))
}

/// Returns the policy of a task written as JSON, which must be valid.
fn policy(section: Value) -> Policy {
    validate(section).unwrap_or_else(|faults| panic!("the test's section has faults: {faults:?}"))
}

/// Returns a successful vote.
fn vote(model: &str, logits: &[f32]) -> Vote {
    Vote {
        model: Arc::from(model),
        output: Ok(ModelOutput::from(logits.to_vec())),
        cost: Cost::default(),
        source: Source::Fresh,
    }
}

/// Returns a failed vote.
fn failed(model: &str) -> Vote {
    Vote::failed(Arc::from(model), VoteFailure::new("out of memory"))
}
