//! What comes of shifts, as a table, as JSON, and as plots.

use comfy_table::CellAlignment;
use concord_policy::Policy;
use serde_json::{Value, json as object};

use super::Corruption;
use crate::evaluate::compare::{Answerer, Brief, Kind};
use crate::evaluate::cost::CostUnit;
use crate::evaluate::metrics::Measured;
use crate::evaluate::plot::{Line, Panel, panels};
use crate::evaluate::report::{Chart, answerer_json, figure_json, foretold, percent};
use crate::table::new_table;

/// The same pictures, made worse in one way.
#[derive(Debug, Clone)]
pub(crate) struct Shifted {
    /// Nothing where they are as they are.
    pub(crate) corruption: Option<Corruption>,
    pub(crate) brief: Brief,
}

impl Shifted {
    /// As a table calls it.
    pub(in crate::evaluate) fn name(&self) -> String {
        self.corruption.map_or("as they are".to_owned(), Corruption::name)
    }
}

/// Columns of the table that is not wide, beside the cost.
const FEW: [&str; 5] = ["shift", "", "MCC", "NLL", "ECE"];

/// Returns the table for people.
pub(crate) fn print(shifted: &[Shifted], policy: &Policy, unit: CostUnit, wide: bool) -> String {
    let (header, rows) = rows(shifted, policy, unit);
    let is_shown = |index: &usize| wide || index + 1 == header.len() || FEW.contains(&&*header[*index]);
    let shown: Vec<usize> = (0..header.len()).filter(is_shown).collect();
    let mut table = new_table(shown.iter().map(|&index| &header[index]), wide);
    for row in rows {
        table.add_row(shown.iter().map(|&index| &row[index]));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n\nUnder shift, after arXiv 1903.12261.\n");
    if wide {
        text.push_str("The share of the images that reaches each stage is the cascade's.\n");
    }
    text
}

/// The names of the columns, and the cells of each row.
pub(in crate::evaluate) fn rows(
    shifted: &[Shifted],
    policy: &Policy,
    unit: CostUnit,
) -> (Vec<String>, Vec<Vec<String>>) {
    let stages = 2..=policy.stages().len();
    let mut header: Vec<String> = ["shift", "", "accuracy", "MCC", "NLL", "ECE"].map(str::to_owned).to_vec();
    header.extend(stages.map(|stage| format!("gets to {stage}")));
    header.push(unit.name().to_owned());
    let row = |shift: &Shifted, answerer: &Answerer| {
        let Measured { accuracy, mcc, nll, ece, .. } = &answerer.measured;
        let mut cells = vec![shift.name(), answerer.name.clone()];
        cells.extend([accuracy, mcc, nll, ece].map(|figure| format!("{:.4}", figure.value)));
        let reached = shift.brief.reached.iter().skip(1);
        cells.extend(reached.map(|share| match answerer.kind {
            Kind::Cascade => percent(share.value),
            Kind::Model | Kind::Fusion | Kind::Baseline => String::new(),
        }));
        cells.push(unit.number(answerer.cost.value));
        cells
    };
    let of_shift = |shift: &Shifted| {
        shift.brief.answerers.iter().map(|answerer| row(shift, answerer)).collect::<Vec<_>>()
    };
    (header, shifted.iter().flat_map(of_shift).collect())
}

/// The same for programs, with intervals.
pub(crate) fn json(shifted: &[Shifted], policy: &Policy, unit: CostUnit) -> Value {
    let one = |shift: &Shifted| {
        let Brief { pictures, answerers, reached, first_stage } = &shift.brief;
        object!({
            "shift": shift.corruption.map(|corruption| corruption.shift.name()),
            "severity": shift.corruption.map_or(0, |corruption| corruption.severity.get()),
            "pictures": pictures,
            "answerers": answerers.iter().map(|answerer| answerer_json(answerer, policy, unit)).collect::<Vec<_>>(),
            "reached": reached.iter().copied().map(figure_json).collect::<Vec<_>>(),
            "first_stage_errors": foretold(&first_stage.by_confidence),
            "first_stage_gate": first_stage.by_gate.as_ref().map(foretold),
        })
    };
    Value::from(shifted.iter().map(one).collect::<Vec<_>>())
}

/// Accuracy and calibration by severity; none where there is no shift.
pub(in crate::evaluate) fn plots(shifted: &[Shifted]) -> Result<Vec<Chart>, String> {
    let mut shifts = Vec::new();
    for corruption in shifted.iter().filter_map(|shift| shift.corruption) {
        if !shifts.contains(&corruption.shift) {
            shifts.push(corruption.shift);
        }
    }
    if shifts.is_empty() {
        return Ok(Vec::new());
    }
    let chart = |name: &str, title: &str, what: &str, of: fn(&Measured) -> f64| {
        let panel = |shift: &super::Shift| {
            let of_shift: Vec<(f64, &Brief)> = shifted
                .iter()
                .filter_map(|other| match other.corruption {
                    None => Some((0.0, &other.brief)),
                    Some(corruption) if corruption.shift == *shift => {
                        Some((f64::from(corruption.severity.get()), &other.brief))
                    }
                    Some(_) => None,
                })
                .collect();
            Panel { title: shift.name().to_owned(), lines: lines(&of_shift, of) }
        };
        let panels_of_shifts: Vec<Panel> = shifts.iter().map(panel).collect();
        let plot = panels(name, title, ("severity", what), &panels_of_shifts)?;
        let caption = format!("{title}, by severity; 0: the pictures as they are. After arXiv 1903.12261.");
        Ok::<_, String>(Chart { plot, caption })
    };
    Ok(vec![
        chart("shift_accuracy", "Accuracy under shift", "accuracy", |measured| measured.accuracy.value)?,
        chart("shift_ece", "Calibration error under shift", "ECE", |measured| measured.ece.value)?,
    ])
}

/// A line for each answerer.
fn lines(by_severity: &[(f64, &Brief)], of: fn(&Measured) -> f64) -> Vec<Line> {
    let Some((_, first)) = by_severity.first() else { return Vec::new() };
    let line = |(index, answerer): (usize, &Answerer)| Line {
        name: answerer.name.clone(),
        is_main: answerer.kind == Kind::Cascade,
        points: by_severity
            .iter()
            .map(|(severity, brief)| (*severity, of(&brief.answerers[index].measured)))
            .collect(),
    };
    first.answerers.iter().enumerate().map(line).collect()
}
