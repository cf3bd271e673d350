//! `concord fit`: fits calibration, weights, correctness estimators, the order of stages and thresholds to
//! labeled images, and writes them into `ensemble.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use concord_policy::{Calibration, Policy, Stage};

use super::labeled::{LabeledArgs, ShiftArgs, VotedImages};
use super::output::spinner;
use super::{EXIT_UNUSABLE, print_line, warn};
use crate::config::Ensemble;
use crate::evaluate::{Objective, assigned, one_of};
use crate::fit::{
    Fit, FitData, FitOptions, Learning, TaskChange, apply_change, fit, next_learned_file, print,
    unified_diff, write_learned_file, write_with_backup,
};

/// Fit calibration, weights, correctness estimators, the order of stages and thresholds to labeled images,
/// and write them into ensemble.toml.
///
/// Each part is evaluated by cross-fitting, on images that it was not fitted on, and is written only if it is
/// significantly better (its 95 % interval lies on the better side of 0): temperatures or, with more than two
/// labels, vector scaling (a scale and a bias for each label) if it beats them; weights, either the same for
/// all images or computed for each image, with a temperature, by a small network on a backbone's feature;
/// and, if a goal is given, the order of stages, correctness estimators (networks that estimate the
/// probability that an answer is right) and thresholds. Networks, order and thresholds are only fitted if the
/// first stage makes at least 50 errors. Networks are written into a file beside ensemble.toml. The change is
/// shown as a diff; comments are kept, and the order of everything but stages; a backup of the old file is
/// kept beside the new one. A running server reloads the file.
///
/// With --shift each image is used twice: clean, and with one of the corruptions, which is always the same
/// one for the same file; with --copies, more often. Goals and reported metrics are then those of all copies
/// together.
///
/// A stage keeps its place if it has `burst_queue_depth`, `min_weight` or a model that is off, as do all
/// stages up to the last one that already asks a correctness estimator. No stage moves past one that keeps
/// its place, and none moves if more than four could. If weights are learned for each image, the backbone's
/// stage does not move back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 if something was fitted or there was nothing to gain, 1 if some images had to be\n\
    left out, 2 if nothing could be fitted."
)]
pub struct FitArgs {
    #[command(flatten)]
    labeled: LabeledArgs,
    #[command(flatten)]
    shift: ShiftArgs,
    /// The number of corrupted copies of each image to fit on, each with another of the corruptions
    #[arg(long, value_name = "N", default_value_t = 1, requires = "shifts", value_parser = RangedU64ValueParser::<usize>::new().range(1..=30))]
    copies: usize,
    /// Also fit the order of stages and thresholds, for the fewest errors at no more than this many
    /// milliseconds per image
    #[arg(long, value_name = "MS", conflicts_with_all = ["max_cost", "min_accuracy", "prices"], value_parser = positive)]
    max_cost_ms: Option<f64>,
    /// Also fit the order of stages and thresholds, for the fewest errors at no more than this cost per
    /// image, in prices given by --price
    #[arg(long, value_name = "AMOUNT", conflicts_with = "min_accuracy", requires = "prices", value_parser = positive)]
    max_cost: Option<f64>,
    /// Also fit the order of stages and thresholds, for the least cost at no less than this accuracy
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_accuracy: Option<f64>,
    /// When to learn and use small networks on a backbone's feature: weights and temperatures for each image
    /// and, if a goal is given, correctness estimators
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    learned: Learning,
    /// The images on which the result will be reported, in any form that --data takes: fitting on one of them
    /// is an error
    #[arg(long, value_name = "PATH")]
    holdout: Option<PathBuf>,
    /// Show the change, but write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn positive(argument: &str) -> Result<f64, String> {
    argument
        .parse()
        .ok()
        .filter(|value: &f64| value.is_finite() && *value > 0.0)
        .ok_or("must be greater than 0".to_owned())
}

fn share(argument: &str) -> Result<f64, String> {
    let value = argument.parse().ok().filter(|value: &f64| (0.0..=1.0).contains(value));
    value.ok_or("must be from 0 to 1".to_owned())
}

impl FitArgs {
    fn options(&self) -> FitOptions {
        let cost = self.max_cost_ms.or(self.max_cost);
        let objective = cost.map(Objective::MaxCost).or(self.min_accuracy.map(Objective::MinAccuracy));
        FitOptions { objective, learning: self.learned }
    }
}

/// Runs the command: fits, reports, and writes.
pub fn run(args: &FitArgs) -> ExitCode {
    let ensemble = args.labeled.dataset.ensemble.read();
    let fitted = ensemble.and_then(|ensemble| {
        if let Some(holdout) = &args.holdout {
            args.labeled.dataset.refuse_shared(&ensemble, holdout)?;
        }
        let plans = assigned(&args.shift.corruptions(), args.copies);
        args.labeled.with_votes(&ensemble, &plans, |clean, corrupted| {
            fit_and_write(args, &ensemble, &with_corrupted(args, clean, corrupted))
        })
    });
    fitted.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// Returns all images to fit on, the clean ones and their corrupted copies, and prints how many there are.
fn with_corrupted<'a>(
    args: &FitArgs,
    mut clean: VotedImages<'a>,
    corrupted: Vec<VotedImages<'a>>,
) -> VotedImages<'a> {
    let mut description = clean.describe();
    if corrupted.is_empty() {
        print_line(&format!("{description}\n"));
        return clean;
    }
    let count: usize = corrupted.iter().map(|voted| voted.images.len()).sum();
    let copies = match corrupted.len() {
        times if count < times * clean.images.len() => format!("{count} copies of them"),
        1 => "each once more".to_owned(),
        times => format!("each {times} times more"),
    };
    description.push_str(&format!(", and {copies}, corrupted by {}", one_of(&args.shift.corruptions())));
    corrupted.into_iter().for_each(|voted| clean.append(voted));
    print_line(&format!("{description}\n"));
    clean
}

fn fit_and_write(args: &FitArgs, ensemble: &Ensemble, voted: &VotedImages<'_>) -> Result<ExitCode, String> {
    let labeled = FitData { images: &voted.images, groups: &voted.groups };
    let working = spinner("fitting every part on each of five folds, and on all images");
    let fit = fit(voted.policy, &ensemble.tasks()[voted.task], labeled, args.options());
    working.finish_and_clear();
    let fit =
        fit.ok_or("there are too few groups of images to fit: there must be one for each of five folds")?;
    print_line(&print(&fit, voted.policy, args.options(), args.labeled.cost_unit()));
    let path = &args.labeled.dataset.ensemble.ensemble;
    let learned = learned_file(args, &fit, voted, ensemble)?;
    if learned.is_none() && voted.policy.learned().is_some() {
        print_line(
            &"The configured learned networks were ignored: they were fitted with other temperatures and weights. Remove \
              learned, correctness and min_weight from the task, and choose another fusion method.\n",
        );
    }
    let before = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut change = change(&fit, voted.policy, &ensemble.tasks()[voted.task]);
    change.learned = learned.as_ref().map(|(name, _)| name.clone());
    let after = apply_change(&before, voted.task, &change)?;
    let shown = unified_diff(&before, &after, &path.display().to_string());
    if shown.is_empty() {
        print_line(&"There is nothing to gain: the file is unchanged.");
    } else {
        print_line(&shown);
        if args.dry_run {
            print_line(&"Nothing was written (--dry-run).");
        } else {
            if let Some((name, bytes)) = &learned {
                write_learned_file(ensemble.folder(), name, bytes)?;
                print_line(&format!("Networks: {}", ensemble.folder().join(name).display()));
            }
            let backup = write_with_backup(path, &before, &after)?;
            print_line(&format!("Written; the old file is {}.", backup.display()));
        }
    }
    Ok(if voted.left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the name and the bytes of the file of learned networks; `None` if none of them are used.
fn learned_file(
    args: &FitArgs,
    fit: &Fit,
    voted: &VotedImages<'_>,
    ensemble: &Ensemble,
) -> Result<Option<(String, Vec<u8>)>, String> {
    let Some(learned) = fit.networks() else { return Ok(None) };
    let note = |key: &str, value: String| (key.to_owned(), value);
    let mut notes = BTreeMap::from([
        note("task", voted.task.to_owned()),
        note("images", voted.images.len().to_string()),
        note("data", voted.digest.to_string()),
        note("program", format!("concord {}", env!("CARGO_PKG_VERSION"))),
    ]);
    let corruptions = args.shift.corruptions();
    if !corruptions.is_empty() {
        let names: Vec<String> = corruptions.iter().map(|corruption| corruption.name()).collect();
        notes.extend([note("shift", names.join(", ")), note("copies", args.copies.to_string())]);
    }
    let name = next_learned_file(ensemble.folder(), voted.task)?;
    Ok(Some((name, learned.to_bytes(&notes)?)))
}

/// Returns the change of `ensemble.toml`. Stages are numbered as in the file, where models that are off have
/// theirs.
fn change(fit: &Fit, policy: &Policy, whole: &Policy) -> TaskChange {
    let (mut temperatures, mut scalings) = (BTreeMap::new(), BTreeMap::new());
    for (member, calibrations) in policy.members().zip(&fit.calibrations) {
        let model = member.model().to_string();
        match calibrations.gained() {
            Some(Calibration::Temperature(temperature)) => {
                temperatures.insert(model, temperature.get());
            }
            Some(Calibration::Vector(scaling)) => {
                scalings.insert(model, scaling.clone());
            }
            None => {}
        }
    }
    let fusion = fit.fusion();
    // Scaled to the old sum, since the weights of models that were not asked stay as they are.
    let sum: f64 = policy.members().map(|member| member.weight().get()).sum();
    let weights = fusion.map(|fusion| {
        let models = policy.members().map(|member| member.model().to_string());
        models.zip(fusion.weights.iter().map(|weight| weight * sum)).collect()
    });
    let order = file_order(fit, policy, whole);
    let mut confidences = vec![None; whole.stages().len()];
    let mut correctness = confidences.clone();
    for (index, confidence) in fit.confidences.iter().flatten().enumerate() {
        let of_file = place_in_file(&policy.stages()[fit.place_of(index)], whole);
        let place = of_file.and_then(|now| order.iter().position(|moved| *moved == now));
        let values = if fit.has_estimator(index) { &mut correctness } else { &mut confidences };
        if let Some(value) = place.and_then(|place| values.get_mut(place)) {
            *value = *confidence;
        }
    }
    TaskChange {
        temperatures,
        scalings,
        weights,
        method: fit.method().map(|method| method.name().to_owned()),
        order,
        confidences,
        correctness,
        learned: None,
    }
}

/// Returns the stages of the file, by their places in it, in their new order.
fn file_order(fit: &Fit, policy: &Policy, whole: &Policy) -> Vec<usize> {
    let mut order: Vec<usize> = (0..whole.stages().len()).collect();
    for (place, stage) in policy.stages().iter().enumerate() {
        let moved = &policy.stages()[fit.place_of(place)];
        if let (Some(here), Some(moved)) = (place_in_file(stage, whole), place_in_file(moved, whole)) {
            order[here] = moved;
        }
    }
    order
}

/// Returns the place of a stage in the file, where it may also have models that are off.
fn place_in_file(stage: &Stage, whole: &Policy) -> Option<usize> {
    let is_in = |model: &str| stage.members().iter().any(|member| **member.model() == *model);
    whole.stages().iter().position(|other| other.members().iter().any(|member| is_in(member.model())))
}
