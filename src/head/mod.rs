//! The parts of `concord head train` around the training itself: stored features, the validation split, and
//! the report. It knows no command and no policy.

mod extract;
mod report;
mod split;
mod store;

pub(crate) use extract::{ExtractedFeatures, Extraction, Preparation};
pub(crate) use report::{Validation, describe, facts, print};
pub(crate) use split::{Split, split};
pub(crate) use store::FeatureStore;
