//! How good a head is on its validation part, in words and in the metadata of its file.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::CellAlignment;
use concord_models::{SNAPSHOT_NOTE, Scores, TrainedHead};
use serde_json::json;

use super::division::Division;
use super::extract::Labelled;
use crate::evaluate::{ERRORS_MIN, Figure, Measured, Resampling, Scored, measure};
use crate::fit::temperature;
use crate::table::new_table;

/// Of the intervals.
const RESAMPLES: usize = 1000;

/// What there is to train and to validate on.
pub(crate) fn describe(labelled: &Labelled, division: &Division, labels: &[String]) -> String {
    let groups = labelled.groups.iter().collect::<BTreeSet<_>>().len();
    let mut text = format!(
        "{} pictures in {groups} groups: {} to train on, {} to validate on",
        labelled.labels.len(),
        division.training.len(),
        division.validation.len()
    );
    if !division.unvalidated.is_empty() {
        let count = division.unvalidated.len();
        let named = division.unvalidated_in_words(labels);
        text.push_str(&format!("; of {count} labels there is one group only, which is trained on: {named}"));
    }
    text
}

/// What the validation part says of a head.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// Of its probabilities as they are, at the temperature 1.
    pub(crate) measured: Measured,
    /// With which its probabilities fit best; no less than 1 where it makes fewer than [`ERRORS_MIN`] errors, for with few
    /// errors a head would always be made surer.
    pub(crate) temperature: f64,
    /// How many pictures it gets wrong.
    pub(crate) errors: usize,
}

impl Judgement {
    /// By what it says of each picture of the validation part.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(
        scores: &[Scores],
        labelled: &Labelled,
        division: &Division,
        classes: usize,
        seed: u64,
    ) -> Result<Self, String> {
        let of = |numbers: &[usize]| -> Vec<usize> {
            division.validation.iter().map(|&picture| numbers[picture]).collect()
        };
        let (labels, groups) = (of(&labelled.labels), of(&labelled.groups));
        let probabilities: Vec<Vec<f64>> = scores.iter().map(|scores| softmax(&scores.logits)).collect();
        let pairs = probabilities.iter().zip(&labels);
        let scored: Vec<Scored<'_>> =
            pairs.map(|(probabilities, &label)| Scored { probabilities, label }).collect();
        let none = "there is no picture to validate on";
        let measured = measure(&scored, classes, &Resampling::new(&groups, RESAMPLES, seed)).ok_or(none)?;
        let rows: Vec<&[f32]> = scores.iter().map(|scores| &*scores.logits).collect();
        let temperature = temperature(&rows, &labels).ok_or(none)?;
        let errors = ((1.0 - measured.accuracy.value) * labels.len() as f64).round() as usize;
        let temperature = if errors < ERRORS_MIN { temperature.max(1.0) } else { temperature };
        Ok(Self { measured, temperature, errors })
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The figures that are told and kept, by name.
fn figures(measured: &Measured) -> [(&'static str, Figure); 5] {
    let Measured { accuracy, balanced_accuracy, mcc, nll, ece, .. } = *measured;
    [
        ("accuracy", accuracy),
        ("balanced accuracy", balanced_accuracy),
        ("MCC", mcc),
        ("NLL", nll),
        ("ECE", ece),
    ]
}

/// What is to be known of a head later: the pictures that it was trained on, and how good it was on the others.
pub(crate) fn facts(
    judgement: &Judgement,
    labelled: &Labelled,
    division: &Division,
    snapshot: &str,
) -> BTreeMap<String, String> {
    let count_of = |label: usize| labelled.labels.iter().filter(|&&of| of == label).count();
    let classes = labelled.labels.iter().max().map_or(0, |label| label + 1);
    let groups: BTreeSet<&usize> = labelled.groups.iter().collect();
    let counts = json!({
        "training": division.training.len(),
        "validation": division.validation.len(),
        "groups": groups.len(),
        "of_each_label": (0..classes).map(count_of).collect::<Vec<_>>(),
    });
    let validation: serde_json::Map<String, serde_json::Value> = figures(&judgement.measured)
        .into_iter()
        .map(|(name, Figure { value, low, high })| {
            (name.to_lowercase().replace(' ', "_"), json!({ "value": value, "low": low, "high": high }))
        })
        .collect();
    BTreeMap::from([
        ("concord".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (SNAPSHOT_NOTE.to_owned(), snapshot.to_owned()),
        ("data".to_owned(), labelled.digest().to_string()),
        ("pictures".to_owned(), counts.to_string()),
        ("validation".to_owned(), serde_json::Value::Object(validation).to_string()),
        ("temperature".to_owned(), format!("{:.4}", judgement.temperature)),
    ])
}

/// The same for people.
pub(crate) fn print(judgement: &Judgement, head: &TrainedHead, division: &Division) -> String {
    let figures = figures(&judgement.measured);
    let mut table = new_table(figures.map(|(name, _)| name), true);
    table.add_row(
        figures.map(|(_, Figure { value, low, high })| format!("{value:.4} ({low:.4} – {high:.4})")),
    );
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "Epoch {} of {} was the best. On the {} pictures of the validation part, which have chosen it, so that other \
         pictures may say less:\n{table}\n{} errors; the temperature {:.3} goes with it.",
        head.best.number,
        head.epochs,
        division.validation.len(),
        judgement.errors,
        judgement.temperature
    )
}
