//! Evaluation on corrupted images: the corruptions, their assignment to images, and the report; knows no
//! model.

mod assignment;
mod corruption;
mod pixels;
mod rain;
mod report;

pub(crate) use assignment::{CorruptionPlan, assigned, one_of};
pub(crate) use corruption::{Corruption, CorruptionKinds, SeverityRange, corruptions};
use corruption::{CorruptionKind, Severity};
pub(crate) use report::{ShiftResult, json, print};
pub(super) use report::{plots, rows};
