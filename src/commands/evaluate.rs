//! `concord evaluate`: how good models, fusions and the cascade are on labelled pictures.

mod files;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;

use super::labelled::{LabelledArgs, ShiftArgs, Voted};
use super::{EXIT_UNUSABLE, print_line, warn};
use crate::config::Ensemble;
use crate::evaluate::{
    Corruption, Resampling, Shifted, Shown, Worsening, compare, compare_in_brief, json, print, print_shifts,
    shifts_json,
};
use crate::table::TableArgs;

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
    #[command(flatten)]
    shift: ShiftArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
    /// Write a report to look at in a browser: the table, plots, and pictures that are worth a look; one file that needs
    /// nothing else
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the plots of the report as SVG and as PNG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Compares, and tells.
pub fn run(args: &EvaluateArgs) -> ExitCode {
    let ensemble = args.labelled.pictures.ensemble.read();
    let compared = ensemble.and_then(|ensemble| {
        files::check(args.html.as_deref(), args.plots.as_deref())?;
        let worse: Vec<Worsening> = args.shift.corruptions().into_iter().map(Worsening::Same).collect();
        args.labelled.with_votes(&ensemble, &worse, |voted, worse| report(args, &ensemble, &voted, &worse))
    });
    compared.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// `voted` are the pictures as they are, and `worse` as each corruption makes them.
fn report(
    args: &EvaluateArgs,
    ensemble: &Ensemble,
    voted: &Voted<'_>,
    worse: &[Voted<'_>],
) -> Result<ExitCode, String> {
    let unit = args.labelled.cost_unit();
    let resampling = Resampling::new(&voted.groups, args.resamples, args.seed);
    let comparison = compare(voted.policy, &voted.pictures, &resampling).ok_or("no picture has all votes")?;
    let shifted = if worse.is_empty() {
        Vec::new()
    } else {
        let corruptions = args.shift.corruptions().into_iter().map(Some);
        let all = [(None, voted)].into_iter().chain(corruptions.zip(worse));
        let all = all.map(|(corruption, voted)| in_brief(args, corruption, voted));
        all.collect::<Result<Vec<_>, String>>()?
    };
    if args.json {
        let mut report = json(&comparison, voted.policy, unit);
        if !shifted.is_empty() {
            report["shifts"] = shifts_json(&shifted, voted.policy, unit);
        }
        print_line(&report);
    } else {
        print_line(&format!("{}\n", voted.describe()));
        print_line(&print(&comparison, voted.policy, unit, args.table.wide));
        if !shifted.is_empty() {
            print_line(&print_shifts(&shifted, voted.policy, unit, args.table.wide));
        }
    }
    let shown = Shown {
        policy: voted.policy,
        pictures: &voted.pictures,
        examples: &voted.examples,
        comparison: &comparison,
        unit,
        shifted: &shifted,
    };
    let limits = ensemble.server();
    files::write(args.html.as_deref(), args.plots.as_deref(), voted, &shown, limits)?;
    let is_complete = voted.left_out == 0 && worse.iter().all(|voted| voted.left_out == 0);
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_brief(
    args: &EvaluateArgs,
    corruption: Option<Corruption>,
    voted: &Voted<'_>,
) -> Result<Shifted, String> {
    let resampling = Resampling::new(&voted.groups, args.resamples, args.seed);
    let brief = compare_in_brief(voted.policy, &voted.pictures, &resampling);
    let name = corruption.map_or("as they are".to_owned(), Corruption::name);
    Ok(Shifted { corruption, brief: brief.ok_or(format!("{name}: no picture has all votes"))? })
}
