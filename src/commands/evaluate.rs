//! `concord evaluate`: compares models, fusions and the cascade on labeled images.

mod files;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;

use super::labeled::{LabeledArgs, ShiftArgs, VotedImages};
use super::{EXIT_UNUSABLE, print_line, warn};
use crate::config::Ensemble;
use crate::evaluate::{
    Bootstrap, Corruption, CorruptionPlan, ShiftResult, Shown, compare, json, print, print_shifts,
    shifts_json, summarize_shift,
};
use crate::table::{TableArgs, wrap};

/// Compare models, fusions and the cascade on labeled images.
///
/// Every model is asked about every image, one after the other. Votes are stored on disk, so that another
/// run, for instance with other weights or thresholds, asks no model again.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 if all images were evaluated, 1 if some had to be left out,\n\
    2 if nothing could be evaluated.")]
pub struct EvaluateArgs {
    #[command(flatten)]
    labeled: LabeledArgs,
    /// The number of bootstrap resamples that the intervals are computed from
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = RangedU64ValueParser::<usize>::new().range(10..=10_000))]
    resamples: usize,
    /// The seed of the resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    shift: ShiftArgs,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    table: TableArgs,
    /// Write a report for the browser: the table, plots, and the images that are most worth a look, in one
    /// self-contained file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the plots of the report into this folder, as SVG and as PNG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// Runs the command: evaluates, and prints or writes the report.
pub fn run(args: &EvaluateArgs) -> ExitCode {
    let ensemble = args.labeled.dataset.ensemble.read();
    let compared = ensemble.and_then(|ensemble| {
        files::check(args.html.as_deref(), args.plots.as_deref())?;
        let plans: Vec<CorruptionPlan> =
            args.shift.corruptions().into_iter().map(CorruptionPlan::Same).collect();
        args.labeled
            .with_votes(&ensemble, &plans, |clean, corrupted| report(args, &ensemble, &clean, &corrupted))
    });
    compared.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// Reports on the clean images, and on those of each corruption, in the order of `args.shift`.
fn report(
    args: &EvaluateArgs,
    ensemble: &Ensemble,
    clean: &VotedImages<'_>,
    corrupted: &[VotedImages<'_>],
) -> Result<ExitCode, String> {
    let unit = args.labeled.cost_unit();
    let bootstrap = Bootstrap::new(&clean.groups, args.resamples, args.seed);
    let comparison =
        compare(clean.policy, &clean.images, &bootstrap).ok_or("no image has a vote of every model")?;
    let shift_results = if corrupted.is_empty() {
        Vec::new()
    } else {
        let corruptions = args.shift.corruptions().into_iter().map(Some);
        let all = [(None, clean)].into_iter().chain(corruptions.zip(corrupted));
        let all = all.map(|(corruption, voted)| summarize(args, corruption, voted));
        all.collect::<Result<Vec<_>, String>>()?
    };
    if args.json {
        let mut report = json(&comparison, clean.policy, unit);
        if !shift_results.is_empty() {
            report["shifts"] = shifts_json(&shift_results, clean.policy, unit);
        }
        print_line(&report);
    } else {
        print_line(&format!("{}\n", wrap(&clean.describe())));
        print_line(&print(&comparison, clean.policy, unit, args.table.wide));
        if !shift_results.is_empty() {
            print_line(&print_shifts(&shift_results, clean.policy, unit, args.table.wide));
        }
    }
    let shown = Shown {
        policy: clean.policy,
        images: &clean.images,
        examples: &clean.examples,
        comparison: &comparison,
        unit,
        shift_results: &shift_results,
    };
    let limits = ensemble.server();
    files::write(args.html.as_deref(), args.plots.as_deref(), clean, &shown, limits)?;
    let is_complete = clean.left_out == 0 && corrupted.iter().all(|voted| voted.left_out == 0);
    Ok(if is_complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Evaluates the images under one corruption; clean images where there is none.
fn summarize(
    args: &EvaluateArgs,
    corruption: Option<Corruption>,
    voted: &VotedImages<'_>,
) -> Result<ShiftResult, String> {
    let bootstrap = Bootstrap::new(&voted.groups, args.resamples, args.seed);
    let summary = summarize_shift(voted.policy, &voted.images, &bootstrap);
    let name = corruption.map_or("clean".to_owned(), Corruption::name);
    Ok(ShiftResult {
        corruption,
        summary: summary.ok_or(format!("{name}: no image has a vote of every model"))?,
    })
}
