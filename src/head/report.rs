//! Evaluates a head on the validation part, and reports it in words and in the metadata of its file.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::CellAlignment;
use concord_models::{SNAPSHOT_NOTE, TrainedHead};
use concord_policy::ModelOutput;
use serde_json::json;

use super::extract::ExtractedFeatures;
use super::split::Split;
use crate::evaluate::{Bootstrap, ClassificationMetrics, ERRORS_MIN, Estimate, Prediction, measure};
use crate::fit::temperature;
use crate::table::new_table;

/// The number of bootstrap resamples of the intervals.
const RESAMPLES: usize = 1000;

/// Describes the images to train and to validate on.
pub(crate) fn describe(extracted: &ExtractedFeatures, split: &Split, labels: &[String]) -> String {
    let groups = extracted.groups.iter().collect::<BTreeSet<_>>().len();
    let mut text = format!(
        "{} images in {groups} groups: {} to train on, {} to validate on",
        extracted.labels.len(),
        split.training.len(),
        split.validation.len()
    );
    if !split.unvalidated.is_empty() {
        let count = split.unvalidated.len();
        let named = split.unvalidated_in_words(labels);
        text.push_str(&format!("; {count} labels have a single group, which is trained on: {named}"));
    }
    text
}

/// The evaluation of a head on the validation part.
#[derive(Debug)]
pub(crate) struct Validation {
    /// The metrics of its uncalibrated probabilities (the temperature 1).
    pub(crate) metrics: ClassificationMetrics,
    /// The fitted temperature; at least 1 if the head makes fewer than [`ERRORS_MIN`] errors, because few
    /// errors always make a head more confident.
    pub(crate) temperature: f64,
    /// The number of errors.
    pub(crate) errors: usize,
}

impl Validation {
    /// Evaluates the outputs of a head for the images of the validation part.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) fn of(
        scores: &[ModelOutput],
        extracted: &ExtractedFeatures,
        split: &Split,
        classes: usize,
        seed: u64,
    ) -> Result<Self, String> {
        let of = |numbers: &[usize]| -> Vec<usize> {
            split.validation.iter().map(|&image| numbers[image]).collect()
        };
        let (labels, groups) = (of(&extracted.labels), of(&extracted.groups));
        let probabilities: Vec<Vec<f64>> = scores.iter().map(|scores| softmax(&scores.logits)).collect();
        let pairs = probabilities.iter().zip(&labels);
        let predictions: Vec<Prediction<'_>> =
            pairs.map(|(probabilities, &label)| Prediction { probabilities, label }).collect();
        let none = "there are no images to validate on";
        let metrics =
            measure(&predictions, classes, &Bootstrap::new(&groups, RESAMPLES, seed)).ok_or(none)?;
        let rows: Vec<&[f32]> = scores.iter().map(|scores| &*scores.logits).collect();
        let temperature = temperature(&rows, &labels).ok_or(none)?;
        let errors = ((1.0 - metrics.accuracy.value) * labels.len() as f64).round() as usize;
        let temperature = if errors < ERRORS_MIN { temperature.max(1.0) } else { temperature };
        Ok(Self { metrics, temperature, errors })
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let powers: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Returns the metrics that are reported, by name.
fn reported_metrics(metrics: &ClassificationMetrics) -> [(&'static str, Estimate); 5] {
    let ClassificationMetrics { accuracy, balanced_accuracy, mcc, nll, ece, .. } = *metrics;
    [
        ("accuracy", accuracy),
        ("balanced accuracy", balanced_accuracy),
        ("MCC", mcc),
        ("NLL", nll),
        ("ECE", ece),
    ]
}

/// Returns the metadata of a head's file: the images that it was trained on, and its metrics on the others.
pub(crate) fn facts(
    validation_result: &Validation,
    extracted: &ExtractedFeatures,
    split: &Split,
    snapshot: &str,
) -> BTreeMap<String, String> {
    let count_of = |label: usize| extracted.labels.iter().filter(|&&of| of == label).count();
    let classes = extracted.labels.iter().max().map_or(0, |label| label + 1);
    let groups: BTreeSet<&usize> = extracted.groups.iter().collect();
    let counts = json!({
        "training": split.training.len(),
        "validation": split.validation.len(),
        "groups": groups.len(),
        "of_each_label": (0..classes).map(count_of).collect::<Vec<_>>(),
    });
    let validation: serde_json::Map<String, serde_json::Value> = reported_metrics(&validation_result.metrics)
        .into_iter()
        .map(|(name, Estimate { value, low, high })| {
            (name.to_lowercase().replace(' ', "_"), json!({ "value": value, "low": low, "high": high }))
        })
        .collect();
    BTreeMap::from([
        ("concord".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        (SNAPSHOT_NOTE.to_owned(), snapshot.to_owned()),
        ("data".to_owned(), extracted.digest().to_string()),
        ("images".to_owned(), counts.to_string()),
        ("validation".to_owned(), serde_json::Value::Object(validation).to_string()),
        ("temperature".to_owned(), format!("{:.4}", validation_result.temperature)),
    ])
}

/// Renders the evaluation for people.
pub(crate) fn print(validation_result: &Validation, head: &TrainedHead, split: &Split) -> String {
    let reported_metrics = reported_metrics(&validation_result.metrics);
    let mut table = new_table(reported_metrics.map(|(name, _)| name), true);
    table.add_row(
        reported_metrics
            .map(|(_, Estimate { value, low, high })| format!("{value:.4} ({low:.4} – {high:.4})")),
    );
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "Epoch {} of {} was the best. Metrics on the {} images of the validation part, which are a little too optimistic \
         because the epoch was chosen on them:\n{table}\n{} errors; fitted temperature {:.3}.",
        head.best.number,
        head.epochs,
        split.validation.len(),
        validation_result.errors,
        validation_result.temperature
    )
}
