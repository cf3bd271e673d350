//! Calibration, fusion and thresholds from labelled pictures: what `concord fit` computes.

mod backup;
mod by_fold;
mod calibrate;
mod cross;
mod edit;
mod learned;
mod learned_file;
mod order;
mod report;
mod solve;
mod train_network;
mod vector;

pub(crate) use backup::write_with_backup;
pub(crate) use cross::{Fit, FitOptions, Labelled, fit};
pub(crate) use edit::{TaskChange, difference, edited, with_head};
pub(crate) use learned::Learning;
pub(crate) use learned_file::{next_learned_file, write_learned_file};
pub(crate) use report::print;
pub(crate) use solve::temperature;
