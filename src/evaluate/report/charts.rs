//! The plots of a comparison, with their captions.

use concord_policy::{Calibration, Member, Policy, Verdict};

use super::calibration::{ScoredAnswer, histogram_of, reliability_of};
use crate::evaluate::compare::{Comparison, Kind, LabeledExample, Strategy, answer};
use crate::evaluate::cost::CostUnit;
use crate::evaluate::curve::curve_of;
use crate::evaluate::dataset::Example;
use crate::evaluate::plot::{
    Confusion, Plot, Point, Role, Tradeoff, confusion, histogram, reliability, tradeoff,
};
use crate::evaluate::shift::{self, ShiftResult};

/// The largest number of labels in a confusion matrix; of more, those with the most mistakes are shown.
const LABELS_MAX: usize = 64;

/// The subject of a report: a comparison with the data that it was made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) images: &'a [LabeledExample<'a>],
    /// The same images as the data set has them.
    pub(crate) examples: &'a [&'a Example],
    pub(crate) comparison: &'a Comparison,
    pub(crate) unit: CostUnit,
    /// The results on clean and on corrupted images; empty if no corruption was requested.
    pub(crate) shift_results: &'a [ShiftResult],
}

/// A plot with its caption.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) plot: Plot,
    pub(crate) caption: String,
}

impl Shown<'_> {
    /// Returns the cascade's answer for each image; `None` if a vote is invalid.
    pub(super) fn cascade(&self) -> Option<Vec<Verdict>> {
        self.images.iter().map(|image| answer(self.policy, self.policy, image)).collect()
    }

    /// Returns a model's probabilities for an image with this calibration; `None` if the vote is invalid.
    pub(super) fn member_probabilities(
        &self,
        member: usize,
        image: usize,
        calibration: &Calibration,
    ) -> Option<Vec<f64>> {
        let logits = self.images[image].votes[member].output.logits(self.policy.labels().len()).ok()?;
        Some(logits.calibrated(calibration).probabilities().to_vec())
    }
}

/// Draws all plots, in the order in which they are shown.
///
/// # Errors
/// When one cannot be drawn.
pub(crate) fn charts(shown: &Shown<'_>) -> Result<Vec<Chart>, String> {
    let cascade = shown.cascade().ok_or("an image has no answer")?;
    let mut charts = vec![tradeoff_chart(shown)?];
    let answers: Vec<ScoredAnswer> = cascade
        .iter()
        .zip(shown.images)
        .map(|(answer, image)| (answer.confidence().get(), answer.label() == image.label))
        .collect();
    charts.push(Chart {
        plot: reliability(
            "reliability_cascade",
            "Reliability of the cascade",
            &[reliability_of("cascade".to_owned(), &answers)],
        )?,
        caption: "The accuracy of answers of about the same confidence, with its 95 % interval (Wilson). On the dashed line \
                  the confidence is perfectly calibrated. Below: the number of answers."
            .to_owned(),
    });
    for (index, member) in shown.policy.members().enumerate() {
        charts.push(model_chart(shown, index, member)?);
    }
    charts.push(confusion_chart(shown, &cascade)?);
    charts.push(Chart {
        plot: histogram(
            "confidence",
            "Confidence of the cascade",
            &histogram_of(&answers, shown.policy.labels().len()),
        )?,
        caption: "Right and wrong answers of the cascade by their confidence.".to_owned(),
    });
    charts.extend(shift::plots(shown.shift_results)?);
    Ok(charts)
}

fn tradeoff_chart(shown: &Shown<'_>) -> Result<Chart, String> {
    let point = |strategy: &Strategy| Point {
        name: strategy.name.clone(),
        role: match strategy.kind {
            Kind::Model => Role::Model,
            Kind::Fusion => Role::Fusion,
            Kind::Cascade => Role::Cascade,
            Kind::Baseline if strategy.name.starts_with("always ") => Role::Choice,
            Kind::Baseline => Role::Baseline,
        },
        cost: strategy.cost.value,
        accuracy: strategy.metrics.accuracy.value,
        interval: (strategy.metrics.accuracy.low, strategy.metrics.accuracy.high),
    };
    let points: Vec<Point> = shown.comparison.strategies.iter().map(point).collect();
    let curve = curve_of(shown.policy, shown.images).ok_or("an image has no answer")?;
    let curve: Vec<(f64, f64)> = curve.iter().map(|outcome| (outcome.cost, outcome.accuracy)).collect();
    let data = Tradeoff { points: &points, curve: &curve, unit: shown.unit.axis() };
    let caption = "The cost and accuracy of every strategy; the configured cascade has its 95 % interval. The line shows \
                   the cascade with other thresholds. They are searched on these images, so the line is a little too \
                   optimistic.";
    Ok(Chart { plot: tradeoff(&data)?, caption: caption.to_owned() })
}

fn model_chart(shown: &Shown<'_>, index: usize, member: &Member) -> Result<Chart, String> {
    let answers_by = |calibration: &Calibration| -> Option<Vec<ScoredAnswer>> {
        let of = |(place, image): (usize, &LabeledExample<'_>)| {
            let member_probabilities = shown.member_probabilities(index, place, calibration)?;
            let best = crate::evaluate::metrics::argmax(&member_probabilities);
            Some((member_probabilities[best], best == image.label))
        };
        shown.images.iter().enumerate().map(of).collect()
    };
    let diagram = |calibration: &Calibration| {
        let answers = answers_by(calibration).ok_or("a vote is invalid")?;
        Ok::<_, String>(reliability_of(calibration.to_string(), &answers))
    };
    let model = member.model();
    let plot = reliability(
        &format!("reliability_{model}"),
        &format!("Reliability of {model}, before and after calibration"),
        &[diagram(&Calibration::NEUTRAL)?, diagram(member.calibration())?],
    )?;
    let caption = format!("{model} uncalibrated, and with the calibration of the policy.");
    Ok(Chart { plot, caption })
}

fn confusion_chart(shown: &Shown<'_>, cascade: &[Verdict]) -> Result<Chart, String> {
    let labels = shown.policy.labels();
    let mut counts = vec![vec![0; labels.len()]; labels.len()];
    for (answer, image) in cascade.iter().zip(shown.images) {
        counts[image.label][answer.label()] += 1;
    }
    let chosen = most_mistaken(&counts);
    let data = Confusion {
        labels: chosen.iter().map(|label| labels[*label].clone()).collect(),
        counts: chosen
            .iter()
            .map(|row| chosen.iter().map(|column| counts[*row][*column]).collect())
            .collect(),
    };
    let mut caption =
        "True labels and answers of the cascade; right answers are blue, mistakes orange.".to_owned();
    if chosen.len() < labels.len() {
        caption.push_str(&format!(
            " The {LABELS_MAX} labels of {} with the most mistakes are shown.",
            labels.len()
        ));
    }
    Ok(Chart { plot: confusion("confusion", "Confusion of the cascade", &data)?, caption })
}

/// Returns the labels with the most mistakes, in their own order; all if there are few.
fn most_mistaken(counts: &[Vec<usize>]) -> Vec<usize> {
    let mistakes = |label: usize| {
        let as_truth: usize = counts[label].iter().sum();
        let as_answer: usize = counts.iter().map(|row| row[label]).sum();
        as_truth + as_answer - 2 * counts[label][label]
    };
    let mut labels: Vec<usize> = (0..counts.len()).collect();
    labels.sort_by_key(|label| std::cmp::Reverse(mistakes(*label)));
    labels.truncate(LABELS_MAX);
    labels.sort_unstable();
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_keeps_the_labels_that_are_mistaken() {
        assert_eq!(most_mistaken(&[vec![3, 1], vec![0, 2]]), [0, 1]);
        let mut counts = vec![vec![0; 100]; 100];
        for (label, row) in counts.iter_mut().enumerate() {
            row[label] = 5;
        }
        counts[97][3] = 2;
        let kept = most_mistaken(&counts);
        assert!(kept.len() == LABELS_MAX && kept.contains(&97) && kept.contains(&3), "{kept:?}");
        assert!(kept.is_sorted());
    }
}
