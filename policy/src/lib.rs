//! Pure decisions about an image: votes of models in, a decision out. Knows nothing of models, actors, clocks
//! or files.
//!
//! A [`TaskSection`] is a task as it is written in `ensemble.toml`; a [`Policy`] is the same, validated.
//! [`decide()`] turns a policy and the votes so far into the next step: ask a stage, or end with a
//! [`Verdict`]. Votes hold uncalibrated logits: calibration and weights apply when votes are fused, so a
//! changed policy needs no model to run again.
//!
//! ```
//! use concord_policy::{Context, Decision, ModelOutput, Policy, TaskSection, Vote, decide};
//!
//! let section: TaskSection = serde_json::from_value(serde_json::json!({
//!     "question": "Is there road work?", "labels": ["no", "yes"], "calibration": { "small": 2.0 },
//!     "stages": [{ "models": ["small"], "accept": { "confidence": 0.95 } }, { "models": ["large"] }],
//! }))?;
//! let policy = Policy::from_section(&section, &["small", "large"].map(str::to_owned).into()).map_err(|errors| errors[0].clone())?;
//! assert_eq!(decide(&policy, &[], &Context::default()), Decision::Ask { stage: 0 });
//!
//! let vote = Vote::known("small".into(), ModelOutput::from(vec![0.0, 8.0]));
//! let Decision::Verdict(verdict) = decide(&policy, &[vote], &Context::default()) else { unreachable!() };
//! assert_eq!(policy.labels()[verdict.label()], "yes");
//! assert_eq!(format!("{:.3}", verdict.confidence()), "0.982");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules, each of which uses only those above it:
//!
//! | module | content |
//! |---|---|
//! | `probability` | [`Probability`], [`Distribution`], [`Logits`], [`Temperature`], [`Weight`]: numbers that were checked |
//! | `output`, `vote` | [`ModelOutput`] and its [`Evidence`]; [`Vote`] and [`VoteFailure`] |
//! | `calibration`, `fusion` | [`Calibration`] of logits; [`FusionMethod`] of distributions |
//! | `error`, `section` | [`PolicyError`]; [`TaskSection`] |
//! | `learned` | [`Learned`]: networks that compute weights, temperatures and correctness from a [feature](Evidence) |
//! | `verdict` | [`Verdict`] and its [`FusedVote`]s |
//! | `cascade`, `policy`, `validate` | [`Stage`], [`Member`] and [`AcceptRule`]; [`Policy`]; [`Policy::from_section`] |
//! | `fits` | [`verdict_fits()`], for verdicts that come from elsewhere |
//! | `tally`, `decide` | the votes so far; [`decide()`] |

mod calibration;
mod cascade;
mod decide;
mod error;
mod fits;
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
pub use fits::verdict_fits;
pub use fusion::FusionMethod;
pub use learned::{CorrectnessEstimator, Dense, FallbackReason, ImageFusion, Learned, LearnedPart, Network};
pub use output::{Evidence, ModelOutput, Region, Shape};
pub use policy::Policy;
pub use probability::{Distribution, Logits, LogitsError, Probability, Temperature, Weight};
pub use section::{AcceptSection, FusionSection, ScalingSection, StageSection, TaskSection};
pub use verdict::{Failure, Fallback, FusedVote, StopReason, Verdict};
pub use vote::{Cost, FailureKind, Source, Vote, VoteFailure};
