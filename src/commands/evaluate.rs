//! `concord evaluate`: how good models, fusions and the cascade are on labelled pictures.

use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;

use super::labelled::{LabelledArgs, Voted};
use super::{EXIT_UNUSABLE, say, warn};
use crate::evaluate::{Resampling, compare, json, print};

/// Compare models, fusions and the cascade on labelled pictures.
///
/// Every model is asked about every picture, one after the other; votes are kept on disk, so that a second run, with other
/// weights or thresholds perhaps, asks for none again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when all pictures were compared, 1 when some had to be left out,\n\
    2 when nothing could be compared.")]
pub struct EvaluateArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
    /// From how many resamples of the data the intervals are
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = RangedU64ValueParser::<usize>::new().range(10..=10_000))]
    resamples: usize,
    /// Of the resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Compares, and tells.
pub fn run(args: &EvaluateArgs) -> ExitCode {
    let ensemble = args.labelled.pictures.ensemble.read();
    let compared =
        ensemble.and_then(|ensemble| args.labelled.with_votes(&ensemble, |voted| report(args, voted)));
    compared.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn report(args: &EvaluateArgs, voted: &Voted<'_>) -> Result<ExitCode, String> {
    let resampling = Resampling::new(&voted.groups, args.resamples, args.seed);
    let comparison = compare(voted.policy, &voted.pictures, &resampling).ok_or("no picture has all votes")?;
    if args.json {
        say(&json(&comparison, voted.policy));
    } else {
        say(&voted.describe());
        say(&print(&comparison, voted.policy));
    }
    Ok(if voted.left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
