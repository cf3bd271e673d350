//! `concord validate`: reports all faults of a configuration before it is used.

use std::process::ExitCode;

use super::{EnsembleArgs, print_line, warn, with_engine};

/// Check the configuration, and that its snapshots and heads load.
#[derive(Debug, clap::Args)]
#[command(after_help = "All faults are reported at once, each with its line.\n\
    Exit status: 0 when the configuration can be used, 1 when it cannot.")]
pub struct ValidateArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// Check the file alone, without loading the models
    #[arg(long)]
    no_load: bool,
}

/// Validates the file, then loads the models.
pub fn run(args: &ValidateArgs) -> ExitCode {
    let checked = args.ensemble.read().and_then(|ensemble| {
        if !args.no_load {
            with_engine(&ensemble, None, async |_| ())?;
        }
        Ok((ensemble.models().len(), ensemble.tasks().len()))
    });
    match checked {
        Ok((models, tasks)) => {
            let what = if args.no_load { "no faults" } else { "no faults, and all models load" };
            print_line(&format!(
                "{}: {what} ({models} models, {tasks} tasks)",
                args.ensemble.ensemble.display()
            ));
            ExitCode::SUCCESS
        }
        Err(message) => {
            warn(&message);
            ExitCode::FAILURE
        }
    }
}
