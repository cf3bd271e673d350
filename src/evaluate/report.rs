//! A comparison as a table for people, and as JSON.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets::UTF8_HORIZONTAL_ONLY};
use concord_actors::policy::Policy;
use serde_json::{Map, Value, json};

use super::compare::{Answerer, Comparison, Foretold};
use super::metrics::{Figure, Measured};

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

/// The table, with each figure's interval below it, and what is said of the stages.
pub(crate) fn print(comparison: &Comparison, policy: &Policy) -> String {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    let names = MEASURES.iter().map(|(name, _, _)| *name);
    table.set_header(["", ""].into_iter().chain(names).chain(["worst class", "ms"]));
    for answerer in &comparison.answerers {
        table.add_row(row(answerer, policy));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{table}\n\nBelow each figure its 95 % interval (bootstrap). ");
    text.push_str("ms: of all models that are asked, a picture.\n");
    for (index, share) in comparison.stages.iter().enumerate() {
        let models: Vec<&str> =
            policy.stages()[index].members().iter().map(|member| &**member.model()).collect();
        text.push_str(&format!(
            "stage {} ({}) answers {} ({} – {})\n",
            index + 1,
            models.join(", "),
            percent(share.value),
            percent(share.low),
            percent(share.high)
        ));
    }
    text.push_str(&match &comparison.first_stage_errors {
        Foretold::By(Figure { value, low, high }) => {
            format!("its doubts foretell the errors of stage 1 with an AUROC of {value:.3} ({low:.3} – {high:.3})\n")
        }
        Foretold::TooFew { errors } => {
            format!("stage 1 makes {errors} errors, too few to say whether its doubts foretell them\n")
        }
    });
    if let Some(Foretold::By(Figure { value, low, high })) = comparison.first_stage_gate {
        text.push_str(&format!(
            "its gate foretells them with an AUROC of {value:.3} ({low:.3} – {high:.3})\n"
        ));
    }
    text
}

fn row(answerer: &Answerer, policy: &Policy) -> Vec<Cell> {
    let measured = &answerer.measured;
    let figure = |figure: Option<Figure>| match figure {
        Some(Figure { value, low, high }) => Cell::new(format!("{value:.4}\n{low:.3}–{high:.3}")),
        None => Cell::new("–"),
    };
    let mut cells = vec![Cell::new(answerer.kind.name()), Cell::new(&answerer.name)];
    cells.extend(MEASURES.iter().map(|(_, _, of)| figure(of(measured))));
    cells.push(match &measured.worst_class {
        Some((class, recall)) => Cell::new(format!("{:.3}\n{}", recall.value, policy.labels()[*class])),
        None => Cell::new("–"),
    });
    let Figure { value, low, high } = answerer.milliseconds;
    cells.push(Cell::new(format!("{value:.1}\n{low:.1}–{high:.1}")));
    cells
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// Everything that the table says.
pub(crate) fn json(comparison: &Comparison, policy: &Policy) -> Value {
    let answerer = |answerer: &Answerer| {
        let mut fields = Map::new();
        fields.insert("kind".to_owned(), Value::from(answerer.kind.name()));
        fields.insert("name".to_owned(), Value::from(&*answerer.name));
        for (_, name, of) in MEASURES {
            fields.insert(name.to_owned(), of(&answerer.measured).map_or(Value::Null, figure));
        }
        let worst = answerer.measured.worst_class.as_ref();
        let worst = worst
            .map(|(class, recall)| json!({ "label": policy.labels()[*class], "recall": figure(*recall) }));
        fields.insert("worst_class".to_owned(), worst.unwrap_or_default());
        fields.insert("milliseconds".to_owned(), figure(answerer.milliseconds));
        Value::Object(fields)
    };
    json!({
        "pictures": comparison.pictures,
        "answerers": comparison.answerers.iter().map(answerer).collect::<Vec<_>>(),
        "stages": comparison.stages.iter().copied().map(figure).collect::<Vec<_>>(),
        "first_stage_errors": foretold(&comparison.first_stage_errors),
        "first_stage_gate": comparison.first_stage_gate.as_ref().map(foretold),
    })
}

fn foretold(foretold: &Foretold) -> Value {
    match foretold {
        Foretold::By(auroc) => json!({ "auroc": figure(*auroc) }),
        Foretold::TooFew { errors } => json!({ "too_few": errors }),
    }
}

fn figure(figure: Figure) -> Value {
    json!({ "value": figure.value, "low": figure.low, "high": figure.high })
}
