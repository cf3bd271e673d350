//! `concord fit`: calibration, weights, gates, the order of stages and thresholds from labelled pictures, written into
//! `ensemble.toml`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::RangedU64ValueParser;
use concord_policy::{Calibration, Policy, Stage};

use super::labelled::{LabelledArgs, ShiftArgs, Voted};
use super::output::spinner;
use super::{EXIT_UNUSABLE, print_line, warn};
use crate::config::Ensemble;
use crate::evaluate::{Goal, dealt, one_of};
use crate::fit::{
    Fit, FitOptions, Labelled, Learning, TaskChange, difference, edited, fit, next_learned_file, print,
    write_learned_file, write_with_backup,
};

/// Fit calibration, weights, gates, the order of stages and thresholds to labelled pictures, and write them into ensemble.toml.
///
/// Each part is judged on pictures that it was not fitted on, and only what is better for sure is written: temperatures or, for more
/// than two labels, vector scaling (a scale and a bias for each label) where that is better still; weights, the same for all
/// images or, by a small network on a backbone's feature, for each image and with a temperature for it; where a goal is given,
/// the order of stages, gates (networks that say how likely an answer is right) and thresholds. Networks, order and thresholds
/// need a first stage that makes at least 50 errors, which they are fitted on. Networks are kept in a file beside
/// ensemble.toml. The change is shown first; comments stay, and the order of everything but stages; the old file is kept
/// beside the new one. A running server takes it over.
///
/// With --shift each picture is fitted on twice: as it is, and made worse in one of these ways, which is always the same for the
/// same file; with --copies more than twice. Goals and what is told are then of all together.
///
/// A stage keeps its place that has `burst_queue_depth`, `min_weight` or a model that is off, as do all up to the last one that
/// asks a gate already. No stage moves past one that keeps its place, and where more than four could move none does. Where
/// weights are learned for each image, the backbone's stage comes no later than it did.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit status: 0 when something was fitted or nothing was to be gained, 1 when some pictures had to be\n\
    left out, 2 when nothing could be fitted."
)]
pub struct FitArgs {
    #[command(flatten)]
    labelled: LabelledArgs,
    #[command(flatten)]
    shift: ShiftArgs,
    /// How often each picture is fitted on again, made worse by another one of the corruptions each time
    #[arg(long, value_name = "N", default_value_t = 1, requires = "shifts", value_parser = RangedU64ValueParser::<usize>::new().range(1..=30))]
    copies: usize,
    /// Fit the order of stages and thresholds as well: the fewest errors at no more than so many milliseconds a picture
    #[arg(long, value_name = "MS", conflicts_with_all = ["max_cost", "min_accuracy", "prices"], value_parser = positive)]
    max_cost_ms: Option<f64>,
    /// Fit the order of stages and thresholds as well: the fewest errors at no more than this of a picture, in the prices that --price gives
    #[arg(long, value_name = "AMOUNT", conflicts_with = "min_accuracy", requires = "prices", value_parser = positive)]
    max_cost: Option<f64>,
    /// Fit the order of stages and thresholds as well: the least cost at no less than this accuracy
    #[arg(long, value_name = "SHARE", value_parser = share)]
    min_accuracy: Option<f64>,
    /// Whether small networks on a backbone's feature are learned and used: weights and temperatures for each image and, where
    /// a goal is given, gates
    #[arg(long, value_enum, value_name = "WHEN", default_value_t)]
    learned: Learning,
    /// Pictures on which the result will be reported, in the form of --data: none of them may be fitted on
    #[arg(long, value_name = "PATH")]
    evaluation: Option<PathBuf>,
    /// Show what would be written, and write nothing
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
        let goal = cost.map(Goal::MaxCost).or(self.min_accuracy.map(Goal::MinAccuracy));
        FitOptions { goal, learning: self.learned }
    }
}

/// Fits, tells, and writes.
pub fn run(args: &FitArgs) -> ExitCode {
    let ensemble = args.labelled.pictures.ensemble.read();
    let fitted = ensemble.and_then(|ensemble| {
        if let Some(evaluation) = &args.evaluation {
            args.labelled.pictures.refuse_shared(&ensemble, evaluation)?;
        }
        let worse = dealt(&args.shift.corruptions(), args.copies);
        args.labelled.with_votes(&ensemble, &worse, |voted, worse| {
            fit_and_write(args, &ensemble, &with_worse(args, voted, worse))
        })
    });
    fitted.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// All that is fitted on; says what it is.
fn with_worse<'a>(args: &FitArgs, mut voted: Voted<'a>, worse: Vec<Voted<'a>>) -> Voted<'a> {
    let mut told = voted.describe();
    if worse.is_empty() {
        print_line(&format!("{told}\n"));
        return voted;
    }
    let count: usize = worse.iter().map(|worse| worse.pictures.len()).sum();
    let copies = match worse.len() {
        times if count < times * voted.pictures.len() => format!("{count} copies of them"),
        1 => "each once more".to_owned(),
        times => format!("each {times} times more"),
    };
    told.push_str(&format!(", and {copies}, made worse by {}", one_of(&args.shift.corruptions())));
    worse.into_iter().for_each(|worse| voted.append(worse));
    print_line(&format!("{told}\n"));
    voted
}

fn fit_and_write(args: &FitArgs, ensemble: &Ensemble, voted: &Voted<'_>) -> Result<ExitCode, String> {
    let labelled = Labelled { pictures: &voted.pictures, groups: &voted.groups };
    let working = spinner("fitting every part five times, and once to all pictures");
    let fit = fit(voted.policy, &ensemble.tasks()[voted.task], labelled, args.options());
    working.finish_and_clear();
    let fit = fit.ok_or("there are fewer groups of pictures than are needed to fit")?;
    print_line(&print(&fit, voted.policy, args.options(), args.labelled.cost_unit()));
    let path = &args.labelled.pictures.ensemble.ensemble;
    let learned = learned_file(args, &fit, voted, ensemble)?;
    if learned.is_none() && voted.policy.learned().is_some() {
        print_line(
            &"The configured networks were fitted beside other temperatures and weights, and count for nothing in what is told \
              here as fitted, where no networks are used: take learned, gate and min_weight out of the task, and \
              choose another method of fusion.\n",
        );
    }
    let before = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut change = change(&fit, voted.policy, &ensemble.tasks()[voted.task]);
    change.learned = learned.as_ref().map(|(name, _)| name.clone());
    let after = edited(&before, voted.task, &change)?;
    let shown = difference(&before, &after, &path.display().to_string());
    if shown.is_empty() {
        print_line(&"Nothing is to be gained: the file stays as it is.");
    } else {
        print_line(&shown);
        if args.dry_run {
            print_line(&"Nothing is written (--dry-run).");
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

/// The name of the file of what was learned, and its bytes; `None` where nothing learned is used.
fn learned_file(
    args: &FitArgs,
    fit: &Fit,
    voted: &Voted<'_>,
    ensemble: &Ensemble,
) -> Result<Option<(String, Vec<u8>)>, String> {
    let Some(learned) = fit.networks() else { return Ok(None) };
    let note = |key: &str, value: String| (key.to_owned(), value);
    let mut notes = BTreeMap::from([
        note("task", voted.task.to_owned()),
        note("pictures", voted.pictures.len().to_string()),
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

/// What is to be written; stages are counted as in the file, where models that are off have theirs.
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
    // In proportion to the weights of models that were not asked, which stay.
    let sum: f64 = policy.members().map(|member| member.weight().get()).sum();
    let weights = fusion.map(|fusion| {
        let models = policy.members().map(|member| member.model().to_string());
        models.zip(fusion.weights.iter().map(|weight| weight * sum)).collect()
    });
    let order = file_order(fit, policy, whole);
    let mut confidences = vec![None; whole.stages().len()];
    let mut gates = confidences.clone();
    for (index, confidence) in fit.confidences.iter().flatten().enumerate() {
        let of_file = place_in_file(&policy.stages()[fit.place_of(index)], whole);
        let place = of_file.and_then(|now| order.iter().position(|moved| *moved == now));
        let values = if fit.gates_stage(index) { &mut gates } else { &mut confidences };
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
        gates,
        learned: None,
    }
}

/// The stages of the file in the order in which they are to be.
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

/// Where a stage is in the file, in which it may have models that are off as well.
fn place_in_file(stage: &Stage, whole: &Policy) -> Option<usize> {
    let is_in = |model: &str| stage.members().iter().any(|member| **member.model() == *model);
    whole.stages().iter().position(|other| other.members().iter().any(|member| is_in(member.model())))
}
