//! Pure decisions: votes in, a decision out. No I/O, no clock, no async, no libtorch.
//!
//! A [`TaskSection`] is what a person wrote in `ensemble.toml`; a [`Policy`] is the same, validated. [`decide()`]
//! turns a policy and the votes so far into what happens next. Votes hold uncalibrated [`Logits`]: calibration
//! and weights apply when votes are fused, so a changed policy needs no model to run again.

mod answer;
mod calibration;
mod decide;
mod fault;
mod fusion;
mod hearing;
mod learned;
mod probability;
mod rules;
mod section;
mod validate;
mod vote;

pub use answer::{Answer, Fallback, Opinion, Reason};
pub use calibration::{Calibration, VectorScaling};
pub use decide::{Context, Decision, Failure, decide};
pub use fault::{Fault, PathPart, nearest, not_one_of};
pub use fusion::{Belief, FusionMethod};
pub use learned::{GATE_NUMBERS, Learned, LearnedPart, Unread, gate_input};
pub use probability::{Distribution, Logits, LogitsError, Probability, Temperature, Weight};
pub use rules::{AcceptRule, Member, Policy, Stage};
pub use section::{AcceptSection, FusionSection, ScalingSection, StageSection, TaskSection};
pub use vote::{Cost, Evidence, FailureKind, Vote, VoteFailure};
