//! Renders a comparison as a table for people, as JSON, and as a page with plots.

mod calibration;
mod charts;
mod contact_sheets;
mod page;

use comfy_table::Cell;
use concord_policy::Policy;
use serde_json::{Map, Value, json};

use super::compare::{Comparison, ErrorDetection, Strategy};
use super::cost::CostUnit;
use super::metrics::{ClassificationMetrics, Estimate};
use crate::table::{align_right_from, new_table, wrap};
pub(crate) use charts::{Chart, Shown, charts};
pub(crate) use contact_sheets::{samples, sheets};
pub(crate) use page::{Images, page};

/// A metric: its name in the table, its name in JSON, and its value.
type Metric = (&'static str, &'static str, fn(&ClassificationMetrics) -> Option<Estimate>);

const METRICS: [Metric; 9] = [
    ("accuracy", "accuracy", |metrics| Some(metrics.accuracy)),
    ("balanced", "balanced_accuracy", |metrics| Some(metrics.balanced_accuracy)),
    ("MCC", "mcc", |metrics| Some(metrics.mcc)),
    ("F1", "f1", |metrics| Some(metrics.f1)),
    ("AUROC", "auroc", |metrics| metrics.auroc),
    ("NLL", "nll", |metrics| Some(metrics.nll)),
    ("Brier", "brier", |metrics| Some(metrics.brier)),
    ("ECE", "ece", |metrics| Some(metrics.ece)),
    ("AURC", "aurc", |metrics| Some(metrics.aurc)),
];

/// The metrics in the table that is not wide, besides the strategy's name and its cost.
const FEW: [&str; 3] = ["MCC", "NLL", "ECE"];

/// Renders the table, with the interval of each metric below it, and the lines about the stages.
pub(crate) fn print(comparison: &Comparison, policy: &Policy, unit: CostUnit, wide: bool) -> String {
    let header = header(unit);
    // The second column is the name, the last one the cost.
    let is_shown = |(index, name): (usize, &&str)| {
        (wide || index == 1 || index + 1 == header.len() || FEW.contains(name)).then_some(index)
    };
    let shown: Vec<usize> = header.iter().enumerate().filter_map(is_shown).collect();
    let mut table = new_table(shown.iter().map(|&index| header[index]), wide);
    for strategy in &comparison.strategies {
        let cells = row(strategy, policy, unit);
        let cell = |&index: &usize| format!("{}\n{}", cells[index].value, cells[index].below);
        table.add_row(shown.iter().map(|index| Cell::new(cell(index).trim_end())));
    }
    align_right_from(&mut table, if wide { 2 } else { 1 });
    let unit = unit.name();
    let mut text = format!("{table}\n\nBelow each metric: its 95 % interval (bootstrap).\n");
    text.push_str(&format!("{unit}: mean cost per image of all models that are asked.\n"));
    for line in stages_in_words(comparison, policy) {
        text.push_str(&format!("{}\n", wrap(&line)));
    }
    text
}

/// Describes the share of images that each stage answers, and how well the first stage detects its errors.
fn stages_in_words(comparison: &Comparison, policy: &Policy) -> Vec<String> {
    let stage = |(index, share): (usize, &Estimate)| {
        let models: Vec<&str> =
            policy.stages()[index].members().iter().map(|member| &**member.model()).collect();
        let [value, low, high] = [share.value, share.low, share.high].map(percent);
        format!("stage {} ({}) answers {value} ({low} – {high})", index + 1, models.join(", "))
    };
    let mut lines: Vec<String> = comparison.stages.iter().enumerate().map(stage).collect();
    lines.push(match &comparison.first_stage.by_confidence {
        ErrorDetection::Auroc(Estimate { value, low, high }) => {
            format!("the confidence of stage 1 detects its errors: AUROC {value:.3} ({low:.3} – {high:.3})")
        }
        ErrorDetection::TooFew { errors } => {
            format!("stage 1 makes {errors} errors, too few to say whether its confidence detects them")
        }
        ErrorDetection::AllWrong { errors } => format!("stage 1 is wrong about all {errors} images"),
    });
    if let Some(ErrorDetection::Auroc(Estimate { value, low, high })) = comparison.first_stage.by_estimator {
        lines
            .push(format!("its correctness estimator detects them: AUROC {value:.3} ({low:.3} – {high:.3})"));
    }
    lines
}

/// A cell of the table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
struct ReportCell {
    value: String,
    /// The interval of the value, or a note on it.
    below: String,
}

fn header(unit: CostUnit) -> Vec<&'static str> {
    let names = METRICS.iter().map(|(name, _, _)| *name);
    ["", ""].into_iter().chain(names).chain(["worst class", unit.name()]).collect()
}

fn row(strategy: &Strategy, policy: &Policy, unit: CostUnit) -> Vec<ReportCell> {
    let metrics = &strategy.metrics;
    let plain = |value: &str| ReportCell { value: value.to_owned(), below: String::new() };
    let cell = |estimate: Option<Estimate>| match estimate {
        Some(Estimate { value, low, high }) => {
            ReportCell { value: format!("{value:.4}"), below: format!("{low:.3}–{high:.3}") }
        }
        None => plain("–"),
    };
    let mut cells = vec![plain(strategy.kind.name()), plain(&strategy.name)];
    cells.extend(METRICS.iter().map(|(_, _, of)| cell(of(metrics))));
    cells.push(match &metrics.worst_class {
        Some((class, recall)) => {
            ReportCell { value: format!("{:.3}", recall.value), below: policy.labels()[*class].clone() }
        }
        None => plain("–"),
    });
    let [value, low, high] =
        [strategy.cost.value, strategy.cost.low, strategy.cost.high].map(|amount| unit.number(amount));
    cells.push(ReportCell { value, below: format!("{low}–{high}") });
    cells
}

/// Formats a share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Returns the comparison as JSON, with everything that the table says.
pub(crate) fn json(comparison: &Comparison, policy: &Policy, unit: CostUnit) -> Value {
    let strategies = comparison.strategies.iter().map(|strategy| strategy_json(strategy, policy, unit));
    json!({
        "images": comparison.images,
        "strategies": strategies.collect::<Vec<_>>(),
        "stages": comparison.stages.iter().copied().map(estimate_json).collect::<Vec<_>>(),
        "first_stage_errors": error_detection(&comparison.first_stage.by_confidence),
        "first_stage_correctness": comparison.first_stage.by_estimator.as_ref().map(error_detection),
    })
}

pub(super) fn error_detection(error_detection: &ErrorDetection) -> Value {
    match error_detection {
        ErrorDetection::Auroc(auroc) => json!({ "auroc": estimate_json(*auroc) }),
        ErrorDetection::TooFew { errors } => json!({ "too_few": errors }),
        ErrorDetection::AllWrong { errors } => json!({ "none_right": errors }),
    }
}

/// Returns a strategy as JSON.
pub(super) fn strategy_json(strategy: &Strategy, policy: &Policy, unit: CostUnit) -> Value {
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), Value::from(strategy.kind.name()));
    fields.insert("name".to_owned(), Value::from(&*strategy.name));
    for (_, name, of) in METRICS {
        fields.insert(name.to_owned(), of(&strategy.metrics).map_or(Value::Null, estimate_json));
    }
    let worst = strategy.metrics.worst_class.as_ref();
    let worst = worst
        .map(|(class, recall)| json!({ "label": policy.labels()[*class], "recall": estimate_json(*recall) }));
    fields.insert("worst_class".to_owned(), worst.unwrap_or_default());
    fields.insert(unit.json_name().to_owned(), estimate_json(strategy.cost));
    Value::Object(fields)
}

/// Returns an estimate with its interval as JSON.
pub(super) fn estimate_json(figure: Estimate) -> Value {
    json!({ "value": figure.value, "low": figure.low, "high": figure.high })
}
