//! The evaluation of answers on labeled images, which `concord evaluate` prints. It asks no model and knows
//! no command.

mod bootstrap;
mod compare;
mod cost;
mod curve;
mod dataset;
mod metrics;
mod plot;
mod report;
mod rng;
mod shift;
pub(crate) mod thresholds;
mod votes;

pub(crate) use compare::{ERRORS_MIN, LabeledExample, answer, compare, summarize_shift};
pub(crate) use cost::{CostUnit, Prices};
pub(crate) use curve::stage_answer;
pub(crate) use dataset::{Dataset, Example, LabelRules};
pub(crate) use metrics::{
    Bootstrap, ClassificationMetrics, Estimate, Prediction, Ranking, log_loss, measure,
};
pub(crate) use report::{Images, Shown, charts, json, page, print, samples, sheets};
pub(crate) use rng::splitmix64;
pub(crate) use shift::{
    Corruption, CorruptionKinds, CorruptionPlan, SeverityRange, ShiftResult, assigned, corruptions, one_of,
};
pub(crate) use shift::{json as shifts_json, print as print_shifts};
pub(crate) use thresholds::Objective;
pub(crate) use votes::{StoredVote, VoteStore};
