//! The fit of calibration, fusion, stage order and thresholds to votes on labeled images, and the edit of
//! `ensemble.toml` that writes it. It asks no model and knows no command.

mod backup;
mod calibrate;
mod cross_fit;
mod edit;
mod folds;
mod learned;
mod learned_file;
mod report;
mod solve;
mod stage_order;
mod train_network;
mod vector_scaling;

pub(crate) use backup::write_with_backup;
pub(crate) use cross_fit::{Fit, FitData, FitOptions, fit};
pub(crate) use edit::{TaskChange, apply_change, set_head, unified_diff};
pub(crate) use learned::Learning;
pub(crate) use learned_file::{next_learned_file, write_learned_file};
pub(crate) use report::print;
pub(crate) use solve::temperature;
