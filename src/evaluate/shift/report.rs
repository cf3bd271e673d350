//! Renders the results on corrupted images as a table, as JSON, and as plots.

use concord_policy::Policy;
use serde_json::{Value, json as object};

use super::{Corruption, CorruptionKind};
use crate::evaluate::compare::{Kind, ShiftSummary, Strategy};
use crate::evaluate::cost::CostUnit;
use crate::evaluate::metrics::ClassificationMetrics;
use crate::evaluate::plot::{Line, Panel, panels};
use crate::evaluate::report::{Chart, error_detection, estimate_json, percent, strategy_json};
use crate::table::{align_right_from, new_table};

/// The results under one corruption.
#[derive(Debug, Clone)]
pub(crate) struct ShiftResult {
    /// `None` if the images are clean.
    pub(crate) corruption: Option<Corruption>,
    pub(crate) summary: ShiftSummary,
}

impl ShiftResult {
    /// Returns the name in tables.
    pub(in crate::evaluate) fn name(&self) -> String {
        self.corruption.map_or("clean".to_owned(), Corruption::name)
    }
}

/// The columns of the table that is not wide, besides the cost.
const FEW: [&str; 5] = ["shift", "", "MCC", "NLL", "ECE"];

/// Renders the table for people.
pub(crate) fn print(shift_results: &[ShiftResult], policy: &Policy, unit: CostUnit, wide: bool) -> String {
    let (header, rows) = rows(shift_results, policy, unit);
    let is_shown = |index: &usize| wide || index + 1 == header.len() || FEW.contains(&&*header[*index]);
    let shown: Vec<usize> = (0..header.len()).filter(is_shown).collect();
    let mut table = new_table(shown.iter().map(|&index| &header[index]), wide);
    for row in rows {
        table.add_row(shown.iter().map(|&index| &row[index]));
    }
    align_right_from(&mut table, 2);
    let mut text = format!("{table}\n\nCorruptions after arXiv 1903.12261.\n");
    if wide {
        text.push_str("The cascade has the share of the images that reach each stage.\n");
    }
    text
}

/// Returns the names of the columns, and the cells of each row.
pub(in crate::evaluate) fn rows(
    shift_results: &[ShiftResult],
    policy: &Policy,
    unit: CostUnit,
) -> (Vec<String>, Vec<Vec<String>>) {
    let stages = 2..=policy.stages().len();
    let mut header: Vec<String> = ["shift", "", "accuracy", "MCC", "NLL", "ECE"].map(str::to_owned).to_vec();
    header.extend(stages.map(|stage| format!("reach {stage}")));
    header.push(unit.name().to_owned());
    let row = |shift: &ShiftResult, strategy: &Strategy| {
        let ClassificationMetrics { accuracy, mcc, nll, ece, .. } = &strategy.metrics;
        let mut cells = vec![shift.name(), strategy.name.clone()];
        cells.extend([accuracy, mcc, nll, ece].map(|estimate| format!("{:.4}", estimate.value)));
        let reached = shift.summary.reached.iter().skip(1);
        cells.extend(reached.map(|share| match strategy.kind {
            Kind::Cascade => percent(share.value),
            Kind::Model | Kind::Fusion | Kind::Baseline => String::new(),
        }));
        cells.push(unit.number(strategy.cost.value));
        cells
    };
    let of_shift = |shift: &ShiftResult| {
        shift.summary.strategies.iter().map(|strategy| row(shift, strategy)).collect::<Vec<_>>()
    };
    (header, shift_results.iter().flat_map(of_shift).collect())
}

/// Returns the results as JSON, with intervals.
pub(crate) fn json(shift_results: &[ShiftResult], policy: &Policy, unit: CostUnit) -> Value {
    let one = |shift: &ShiftResult| {
        let ShiftSummary { images, strategies, reached, first_stage } = &shift.summary;
        object!({
            "shift": shift.corruption.map(|corruption| corruption.kind.name()),
            "severity": shift.corruption.map_or(0, |corruption| corruption.severity.get()),
            "images": images,
            "strategies": strategies.iter().map(|strategy| strategy_json(strategy, policy, unit)).collect::<Vec<_>>(),
            "reached": reached.iter().copied().map(estimate_json).collect::<Vec<_>>(),
            "first_stage_errors": error_detection(&first_stage.by_confidence),
            "first_stage_correctness": first_stage.by_estimator.as_ref().map(error_detection),
        })
    };
    Value::from(shift_results.iter().map(one).collect::<Vec<_>>())
}

/// Draws accuracy and calibration by severity; no plots if no corruption was requested.
pub(in crate::evaluate) fn plots(shift_results: &[ShiftResult]) -> Result<Vec<Chart>, String> {
    let mut shifts = Vec::new();
    for corruption in shift_results.iter().filter_map(|shift| shift.corruption) {
        if !shifts.contains(&corruption.kind) {
            shifts.push(corruption.kind);
        }
    }
    if shifts.is_empty() {
        return Ok(Vec::new());
    }
    let chart = |name: &str, title: &str, what: &str, of: fn(&ClassificationMetrics) -> f64| {
        let panel = |shift: &CorruptionKind| {
            let of_shift: Vec<(f64, &ShiftSummary)> = shift_results
                .iter()
                .filter_map(|other| match other.corruption {
                    None => Some((0.0, &other.summary)),
                    Some(corruption) if corruption.kind == *shift => {
                        Some((f64::from(corruption.severity.get()), &other.summary))
                    }
                    Some(_) => None,
                })
                .collect();
            Panel { title: shift.name().to_owned(), lines: lines(&of_shift, of) }
        };
        let panels_of_shifts: Vec<Panel> = shifts.iter().map(panel).collect();
        let plot = panels(name, title, ("severity", what), &panels_of_shifts)?;
        let caption = format!("{title}, by severity; 0 means clean. Corruptions after arXiv 1903.12261.");
        Ok::<_, String>(Chart { plot, caption })
    };
    Ok(vec![
        chart("shift_accuracy", "Accuracy under shift", "accuracy", |metrics| metrics.accuracy.value)?,
        chart("shift_ece", "Calibration error under shift", "ECE", |metrics| metrics.ece.value)?,
    ])
}

/// Returns a line for each strategy.
fn lines(by_severity: &[(f64, &ShiftSummary)], of: fn(&ClassificationMetrics) -> f64) -> Vec<Line> {
    let Some((_, first)) = by_severity.first() else { return Vec::new() };
    let line = |(index, strategy): (usize, &Strategy)| Line {
        name: strategy.name.clone(),
        is_main: strategy.kind == Kind::Cascade,
        points: by_severity
            .iter()
            .map(|(severity, summary)| (*severity, of(&summary.strategies[index].metrics)))
            .collect(),
    };
    first.strategies.iter().enumerate().map(line).collect()
}
