//! What `concord head train` computes around a training: features on disk, the validation part, and what is told.

mod division;
mod extract;
mod report;
mod store;

pub(crate) use division::{Division, divide};
pub(crate) use extract::{Extraction, Labelled, Preparation};
pub(crate) use report::{Judgement, describe, facts, print};
pub(crate) use store::FeatureStore;
