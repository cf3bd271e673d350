//! How good answers are, by labelled pictures: what `concord evaluate` computes.

mod bootstrap;
mod compare;
mod cost;
mod curve;
mod dataset;
mod metrics;
mod plot;
mod random;
mod report;
mod shift;
pub(crate) mod thresholds;
mod votes;

pub(crate) use compare::{ERRORS_MIN, Judged, answer, compare, compare_in_brief};
pub(crate) use cost::{CostUnit, Prices};
pub(crate) use curve::stage_answer;
pub(crate) use dataset::{Dataset, Example, Labelling};
pub(crate) use metrics::{Figure, Measured, Ranking, Resampling, Scored, log_loss, measure};
pub(crate) use random::splitmix64;
pub(crate) use report::{Pictures, Shown, charts, json, page, print, samples, sheets};
pub(crate) use shift::{Corruption, SeverityRange, Shifted, Shifts, Worsening, corruptions, dealt, one_of};
pub(crate) use shift::{json as shifts_json, print as print_shifts};
pub(crate) use thresholds::Goal;
pub(crate) use votes::{StoredVote, VoteStore};
