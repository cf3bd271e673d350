//! Calibration, fusion and thresholds from labelled pictures: what `concord fit` computes.

mod backup;
mod cross;
mod edit;
mod report;
mod solve;
mod thresholds;

pub(crate) use backup::write_with_backup;
pub(crate) use cross::{Fit, Labelled, fit};
pub(crate) use edit::{TaskChange, difference, edited, with_head};
pub(crate) use report::print;
pub(crate) use solve::temperature;
pub(crate) use thresholds::Goal;
