//! A comparison as a table for people, as JSON, and as a page with plots.

mod calibration;
mod charts;
mod page;
mod sheets;

use comfy_table::{Cell, CellAlignment};
use concord_policy::Policy;
use serde_json::{Map, Value, json};

use super::compare::{Answerer, Comparison, Foretold};
use super::cost::CostUnit;
use super::metrics::{Figure, Measured};
use crate::table::new_table;
pub(crate) use charts::{Chart, Shown, charts};
pub(crate) use page::{Pictures, page};
pub(crate) use sheets::{samples, sheets};

/// A measure: its name in the table, its name in JSON, and where it stands.
type Measure = (&'static str, &'static str, fn(&Measured) -> Option<Figure>);

const MEASURES: [Measure; 9] = [
    ("accuracy", "accuracy", |measured| Some(measured.accuracy)),
    ("balanced", "balanced_accuracy", |measured| Some(measured.balanced_accuracy)),
    ("MCC", "mcc", |measured| Some(measured.mcc)),
    ("F1", "f1", |measured| Some(measured.f1)),
    ("AUROC", "auroc", |measured| measured.auroc),
    ("NLL", "nll", |measured| Some(measured.nll)),
    ("Brier", "brier", |measured| Some(measured.brier)),
    ("ECE", "ece", |measured| Some(measured.ece)),
    ("AURC", "aurc", |measured| Some(measured.aurc)),
];

/// Columns of the table that is not wide, beside the strategy's name and its cost.
const FEW: [&str; 3] = ["MCC", "NLL", "ECE"];

/// Returns the table, with each figure's interval below it, and a line about each stage.
pub(crate) fn print(comparison: &Comparison, policy: &Policy, unit: CostUnit, wide: bool) -> String {
    let header = header(unit);
    // The second column is the name, the last one the cost.
    let is_shown = |(index, name): (usize, &&str)| {
        (wide || index == 1 || index + 1 == header.len() || FEW.contains(name)).then_some(index)
    };
    let shown: Vec<usize> = header.iter().enumerate().filter_map(is_shown).collect();
    let mut table = new_table(shown.iter().map(|&index| header[index]), wide);
    for answerer in &comparison.answerers {
        let cells = row(answerer, policy, unit);
        let cell = |&index: &usize| format!("{}\n{}", cells[index].value, cells[index].below);
        table.add_row(shown.iter().map(|index| Cell::new(cell(index).trim_end())));
    }
    for column in table.column_iter_mut().skip(if wide { 2 } else { 1 }) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let unit = unit.name();
    let mut text = format!("{table}\n\nBelow each figure: its 95 % interval (bootstrap).\n");
    text.push_str(&format!("{unit}: cost per image of all models that are asked.\n"));
    for line in stages_in_words(comparison, policy) {
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// Which stages answer how much, and whether the first one knows when it is wrong.
fn stages_in_words(comparison: &Comparison, policy: &Policy) -> Vec<String> {
    let stage = |(index, share): (usize, &Figure)| {
        let models: Vec<&str> =
            policy.stages()[index].members().iter().map(|member| &**member.model()).collect();
        let [value, low, high] = [share.value, share.low, share.high].map(percent);
        format!("stage {} ({}) answers {value} ({low} – {high})", index + 1, models.join(", "))
    };
    let mut lines: Vec<String> = comparison.stages.iter().enumerate().map(stage).collect();
    lines.push(match &comparison.first_stage.by_confidence {
        Foretold::By(Figure { value, low, high }) => {
            format!(
                "its doubts foretell the errors of stage 1 with an AUROC of {value:.3} ({low:.3} – {high:.3})"
            )
        }
        Foretold::TooFew { errors } => {
            format!("stage 1 makes {errors} errors, too few to say whether its doubts foretell them")
        }
        Foretold::NoneRight { errors } => format!("stage 1 is wrong about all {errors} pictures"),
    });
    if let Some(Foretold::By(Figure { value, low, high })) = comparison.first_stage.by_gate {
        lines.push(format!("its gate foretells them with an AUROC of {value:.3} ({low:.3} – {high:.3})"));
    }
    lines
}

/// A cell of the table.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
struct Told {
    value: String,
    /// An interval, or what is said of the value.
    below: String,
}

fn header(unit: CostUnit) -> Vec<&'static str> {
    let names = MEASURES.iter().map(|(name, _, _)| *name);
    ["", ""].into_iter().chain(names).chain(["worst class", unit.name()]).collect()
}

fn row(answerer: &Answerer, policy: &Policy, unit: CostUnit) -> Vec<Told> {
    let measured = &answerer.measured;
    let plain = |value: &str| Told { value: value.to_owned(), below: String::new() };
    let figure = |figure: Option<Figure>| match figure {
        Some(Figure { value, low, high }) => {
            Told { value: format!("{value:.4}"), below: format!("{low:.3}–{high:.3}") }
        }
        None => plain("–"),
    };
    let mut cells = vec![plain(answerer.kind.name()), plain(&answerer.name)];
    cells.extend(MEASURES.iter().map(|(_, _, of)| figure(of(measured))));
    cells.push(match &measured.worst_class {
        Some((class, recall)) => {
            Told { value: format!("{:.3}", recall.value), below: policy.labels()[*class].clone() }
        }
        None => plain("–"),
    });
    let [value, low, high] =
        [answerer.cost.value, answerer.cost.low, answerer.cost.high].map(|amount| unit.number(amount));
    cells.push(Told { value, below: format!("{low}–{high}") });
    cells
}

/// A share in words.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Everything that the table says.
pub(crate) fn json(comparison: &Comparison, policy: &Policy, unit: CostUnit) -> Value {
    let answerers = comparison.answerers.iter().map(|answerer| answerer_json(answerer, policy, unit));
    json!({
        "pictures": comparison.pictures,
        "answerers": answerers.collect::<Vec<_>>(),
        "stages": comparison.stages.iter().copied().map(figure_json).collect::<Vec<_>>(),
        "first_stage_errors": foretold(&comparison.first_stage.by_confidence),
        "first_stage_gate": comparison.first_stage.by_gate.as_ref().map(foretold),
    })
}

pub(super) fn foretold(foretold: &Foretold) -> Value {
    match foretold {
        Foretold::By(auroc) => json!({ "auroc": figure_json(*auroc) }),
        Foretold::TooFew { errors } => json!({ "too_few": errors }),
        Foretold::NoneRight { errors } => json!({ "none_right": errors }),
    }
}

/// One row of it.
pub(super) fn answerer_json(answerer: &Answerer, policy: &Policy, unit: CostUnit) -> Value {
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), Value::from(answerer.kind.name()));
    fields.insert("name".to_owned(), Value::from(&*answerer.name));
    for (_, name, of) in MEASURES {
        fields.insert(name.to_owned(), of(&answerer.measured).map_or(Value::Null, figure_json));
    }
    let worst = answerer.measured.worst_class.as_ref();
    let worst = worst
        .map(|(class, recall)| json!({ "label": policy.labels()[*class], "recall": figure_json(*recall) }));
    fields.insert("worst_class".to_owned(), worst.unwrap_or_default());
    fields.insert(unit.json_name().to_owned(), figure_json(answerer.cost));
    Value::Object(fields)
}

/// A figure with its interval.
pub(super) fn figure_json(figure: Figure) -> Value {
    json!({ "value": figure.value, "low": figure.low, "high": figure.high })
}
