//! The arguments that say how images are corrupted.

use crate::evaluate::{Corruption, CorruptionKinds, SeverityRange, corruptions};

/// The corruptions that the images are evaluated or fitted under, if any.
#[derive(Debug, clap::Args)]
pub(in crate::commands) struct ShiftArgs {
    /// Use corrupted copies of the images as well: blur, noise, dark, rain, jpeg or occlusion, several
    /// separated by commas, or all
    #[arg(long = "shift", value_name = "NAME", value_delimiter = ',')]
    shifts: Vec<CorruptionKinds>,
    /// The severities of the corruptions: numbers from 1 to 5 or ranges of them, separated by commas
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
    /// Returns every requested corruption at every requested severity, once.
    pub(in crate::commands) fn corruptions(&self) -> Vec<Corruption> {
        corruptions(&self.shifts, &self.severities)
    }
}
