//! How good answers are, by labelled pictures: what `concord evaluate` computes.

mod bootstrap;
mod compare;
mod dataset;
mod metrics;
mod report;
mod votes;

pub(crate) use bootstrap::splitmix64;
pub(crate) use compare::{ERRORS_MIN, Judged, compare};
pub(crate) use dataset::{Dataset, Example, Labelling};
pub(crate) use metrics::{Figure, Measured, Ranking, Resampling, Scored, log_loss, measure};
pub(crate) use report::{json, print};
pub(crate) use votes::{StoredVote, VoteStore};
