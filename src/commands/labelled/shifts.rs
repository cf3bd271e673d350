//! The options that say how pictures are made worse.

use crate::evaluate::{Corruption, SeverityRange, Shifts, corruptions};

/// How pictures are made worse, if that is wanted.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct ShiftArgs {
    /// The same pictures once more, made worse: by blur, noise, dark, rain, jpeg or occlusion, several with commas between
    /// them, or all
    #[arg(long = "shift", value_name = "NAME", value_delimiter = ',')]
    shifts: Vec<Shifts>,
    /// How strongly: numbers from 1 to 5 or ranges, several with commas between them
    #[arg(
        long = "severity",
        value_name = "N",
        value_delimiter = ',',
        default_value = "1..5",
        requires = "shifts"
    )]
    severities: Vec<SeverityRange>,
}

impl ShiftArgs {
    /// Each that is wanted, once.
    pub(in crate::commands) fn corruptions(&self) -> Vec<Corruption> {
        corruptions(&self.shifts, &self.severities)
    }
}
