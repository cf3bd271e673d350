//! Which plots a comparison has, and what is said below each.

use concord_policy::{Answer, Calibration, Member, Policy};

use super::calibration::{Sureness, histogram_of, reliability_of};
use crate::evaluate::compare::{Answerer, Comparison, Judged, Kind, answer};
use crate::evaluate::cost::CostUnit;
use crate::evaluate::curve::curve_of;
use crate::evaluate::dataset::Example;
use crate::evaluate::plot::{
    Confusion, Plot, Point, Role, Tradeoff, confusion, histogram, reliability, tradeoff,
};
use crate::evaluate::shift::{self, Shifted};

/// A matrix of more labels shows those that are mistaken most often.
const LABELS_MAX: usize = 64;

/// What a report is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) pictures: &'a [Judged<'a>],
    /// The same pictures, as they were read.
    pub(crate) examples: &'a [&'a Example],
    pub(crate) comparison: &'a Comparison,
    pub(crate) unit: CostUnit,
    /// As they are, and made worse; empty where that was not asked for.
    pub(crate) shifted: &'a [Shifted],
}

/// A plot with what is said of it.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) plot: Plot,
    pub(crate) caption: String,
}

impl Shown<'_> {
    /// What the cascade answers for each picture.
    pub(super) fn cascade(&self) -> Option<Vec<Answer>> {
        self.pictures.iter().map(|picture| answer(self.policy, self.policy, picture)).collect()
    }

    /// What a model says of a picture, calibrated like this.
    pub(super) fn opinion(
        &self,
        member: usize,
        picture: usize,
        calibration: &Calibration,
    ) -> Option<Vec<f64>> {
        let logits = self.pictures[picture].votes[member].logits.clone();
        let logits = concord_policy::Logits::new(logits, self.policy.labels().len()).ok()?;
        Some(logits.calibrated(calibration).probabilities().to_vec())
    }
}

/// All plots, in the order in which they are shown.
///
/// # Errors
/// When one cannot be drawn.
pub(crate) fn charts(shown: &Shown<'_>) -> Result<Vec<Chart>, String> {
    let cascade = shown.cascade().ok_or("a picture has no answer")?;
    let mut charts = vec![tradeoff_chart(shown)?];
    let sureness: Vec<Sureness> = cascade
        .iter()
        .zip(shown.pictures)
        .map(|(answer, picture)| (answer.confidence().get(), answer.label() == picture.label))
        .collect();
    charts.push(Chart {
        plot: reliability(
            "reliability_cascade",
            "Reliability of the cascade",
            &[reliability_of("cascade".to_owned(), &sureness)],
        )?,
        caption: "Answers of about the same confidence, and the share of them that is right, with its 95 % interval \
                  (Wilson): on the dashed line confidences are what they say. Below, how many answers there are."
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
            &histogram_of(&sureness, shown.policy.labels().len()),
        )?,
        caption: "Right and wrong answers of the cascade by their confidence.".to_owned(),
    });
    charts.extend(shift::plots(shown.shifted)?);
    Ok(charts)
}

fn tradeoff_chart(shown: &Shown<'_>) -> Result<Chart, String> {
    let point = |answerer: &Answerer| Point {
        name: answerer.name.clone(),
        role: match answerer.kind {
            Kind::Model => Role::Model,
            Kind::Fusion => Role::Fusion,
            Kind::Cascade => Role::Cascade,
            Kind::Baseline if answerer.name.starts_with("always ") => Role::Choice,
            Kind::Baseline => Role::Baseline,
        },
        cost: answerer.cost.value,
        accuracy: answerer.measured.accuracy.value,
        interval: (answerer.measured.accuracy.low, answerer.measured.accuracy.high),
    };
    let points: Vec<Point> = shown.comparison.answerers.iter().map(point).collect();
    let curve = curve_of(shown.policy, shown.pictures).ok_or("a picture has no answer")?;
    let curve: Vec<(f64, f64)> = curve.iter().map(|outcome| (outcome.cost, outcome.accuracy)).collect();
    let data = Tradeoff { points: &points, curve: &curve, unit: shown.unit.axis() };
    let caption = "Every way to answer by what it costs and how often it is right; the cascade as it is configured with \
                   its 95 % interval. The line is what the cascade would come to with other thresholds: they are found \
                   on these pictures, so it promises a little too much.";
    Ok(Chart { plot: tradeoff(&data)?, caption: caption.to_owned() })
}

fn model_chart(shown: &Shown<'_>, index: usize, member: &Member) -> Result<Chart, String> {
    let answers_by = |calibration: &Calibration| -> Option<Vec<Sureness>> {
        let of = |(place, picture): (usize, &Judged<'_>)| {
            let opinion = shown.opinion(index, place, calibration)?;
            let best = crate::evaluate::metrics::argmax(&opinion);
            Some((opinion[best], best == picture.label))
        };
        shown.pictures.iter().enumerate().map(of).collect()
    };
    let diagram = |calibration: &Calibration| {
        let answers = answers_by(calibration).ok_or("a vote is none")?;
        Ok::<_, String>(reliability_of(calibration.to_string(), &answers))
    };
    let model = member.model();
    let plot = reliability(
        &format!("reliability_{model}"),
        &format!("Reliability of {model}, before and after calibration"),
        &[diagram(&Calibration::NEUTRAL)?, diagram(member.calibration())?],
    )?;
    let caption = format!("{model} as it is, and with the calibration of the policy.");
    Ok(Chart { plot, caption })
}

fn confusion_chart(shown: &Shown<'_>, cascade: &[Answer]) -> Result<Chart, String> {
    let labels = shown.policy.labels();
    let mut counts = vec![vec![0; labels.len()]; labels.len()];
    for (answer, picture) in cascade.iter().zip(shown.pictures) {
        counts[picture.label][answer.label()] += 1;
    }
    let chosen = most_mistaken(&counts);
    let data = Confusion {
        labels: chosen.iter().map(|label| labels[*label].clone()).collect(),
        counts: chosen
            .iter()
            .map(|row| chosen.iter().map(|column| counts[*row][*column]).collect())
            .collect(),
    };
    let mut caption = "What the cascade takes for what; right answers are blue, mistakes orange.".to_owned();
    if chosen.len() < labels.len() {
        caption
            .push_str(&format!(" Of {} labels the {LABELS_MAX} that are mistaken most often.", labels.len()));
    }
    Ok(Chart { plot: confusion("confusion", "Confusion of the cascade", &data)?, caption })
}

/// The labels that are in most mistakes, in their own order; all where there are few.
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
