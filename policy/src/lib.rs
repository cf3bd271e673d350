//! Pure decisions: votes in, a decision out. No I/O, no clock, no async, no libtorch.
//!
//! A [`TaskSection`] is what a person wrote in `ensemble.toml`; a [`Policy`] is the same, validated.
//! [`decide()`] turns a policy and the votes so far into what happens next. Votes hold uncalibrated
//! [`Logits`]: calibration and weights apply when votes are fused, so a changed policy needs no model to run
//! again.

mod calibration;
mod cascade;
mod decide;
mod error;
mod fusion;
mod learned;
mod output;
mod policy;
mod probability;
mod section;
mod tally;
mod validate;
mod verdict;
mod vote;

pub use calibration::{Calibration, VectorScaling};
pub use cascade::{AcceptRule, Member, Stage};
pub use decide::{Context, Decision, decide};
pub use error::{PathPart, PolicyError, Problem};
pub use fusion::FusionMethod;
pub use learned::{CorrectnessEstimator, Dense, FallbackReason, ImageFusion, Learned, LearnedPart, Network};
pub use output::{Evidence, ModelOutput, Region, Shape};
pub use policy::Policy;
pub use probability::{Distribution, Logits, LogitsError, Probability, Temperature, Weight};
pub use section::{AcceptSection, FusionSection, ScalingSection, StageSection, TaskSection};
pub use verdict::{Failure, Fallback, FusedVote, StopReason, Verdict};
pub use vote::{Cost, FailureKind, Source, Vote, VoteFailure};
