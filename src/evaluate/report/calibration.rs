//! Bins answers by their confidence, for reliability diagrams and histograms. Pure.

use crate::evaluate::metrics::{CALIBRATION_BINS, calibration_bin};
use crate::evaluate::plot::{CalibrationBin, Histogram, Reliability};

/// The number of bars of a histogram.
const BARS: usize = 25;
/// The half width of a 95 % interval, in standard errors.
const STANDARD_ERRORS: f64 = 1.959_964;

/// The confidence of an answer, and `true` if it is right.
pub(super) type ScoredAnswer = (f64, bool);

/// Computes a reliability diagram, with the bins of the calibration error.
pub(super) fn reliability_of(title: String, answers: &[ScoredAnswer]) -> Reliability {
    let mut sums = [(0_usize, 0.0, 0_usize); CALIBRATION_BINS];
    for (confidence, is_right) in answers {
        let (count, confidences, right) = &mut sums[calibration_bin(*confidence)];
        *count += 1;
        *confidences += confidence;
        *right += usize::from(*is_right);
    }
    let bin = |(count, confidences, right): (usize, f64, usize)| {
        (count > 0).then(|| CalibrationBin {
            count,
            confidence: confidences / count as f64,
            accuracy: right as f64 / count as f64,
            interval: wilson(right, count),
        })
    };
    let bins: Vec<Option<CalibrationBin>> = sums.into_iter().map(bin).collect();
    let gap = |bin: &CalibrationBin| (bin.accuracy - bin.confidence).abs() * bin.count as f64;
    let ece = bins.iter().flatten().map(gap).sum::<f64>() / answers.len().max(1) as f64;
    Reliability { title, ece, bins }
}

/// Computes a histogram of confidences, from the least one that an answer among so many labels can have.
pub(super) fn histogram_of(answers: &[ScoredAnswer], labels: usize) -> Histogram {
    let low = 1.0 / labels.max(1) as f64;
    let mut bins = vec![[0; 2]; BARS];
    for (confidence, is_right) in answers {
        let place = ((confidence - low) / (1.0 - low) * BARS as f64).floor() as usize;
        bins[place.min(BARS - 1)][usize::from(!is_right)] += 1;
    }
    Histogram { low, bins }
}

/// Returns the 95 % interval of the share `right` / `count` (Wilson 1927, "Probable inference, the law of
/// succession, and statistical inference"); it is good for small counts, and for shares near 0 and 1.
fn wilson(right: usize, count: usize) -> (f64, f64) {
    let (count, share) = (count as f64, right as f64 / count as f64);
    let square = STANDARD_ERRORS * STANDARD_ERRORS;
    let middle = (share + square / (2.0 * count)) / (1.0 + square / count);
    let spread = STANDARD_ERRORS / (1.0 + square / count)
        * (share * (1.0 - share) / count + square / (4.0 * count * count)).sqrt();
    ((middle - spread).max(0.0), (middle + spread).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_with_their_confidence() {
        let answers = [(0.99, true), (0.97, true), (0.95, false), (0.55, true)];
        let diagram = reliability_of("a".to_owned(), &answers);
        let last = diagram.bins.last().unwrap().unwrap();
        assert_eq!(last.count, 3);
        assert!(
            (last.confidence - 0.97).abs() < 1e-9 && (last.accuracy - 2.0 / 3.0).abs() < 1e-9,
            "{last:?}"
        );
        assert_eq!(diagram.bins.iter().flatten().count(), 2);
        // Three answers with a gap of 0.97 - 0.667, one with 0.45.
        assert!((diagram.ece - (3.0 * (0.97 - 2.0 / 3.0) + 0.45) / 4.0).abs() < 1e-9, "{}", diagram.ece);
    }

    #[test]
    fn an_interval_of_few_answers_is_wide_and_stays_a_share() {
        // As R's binom::binom.wilson gives it.
        let (low, high) = wilson(8, 10);
        assert!((low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4, "{low} to {high}");
        let (low, high) = wilson(3, 3);
        assert!(low < 0.45 && (high - 1.0).abs() < 1e-12, "{low} to {high}");
    }

    #[test]
    fn every_answer_is_in_a_bar() {
        let data = histogram_of(&[(0.5, true), (1.0, true), (0.999, false)], 2);
        assert_eq!((data.low, data.bins[0], data.bins[BARS - 1]), (0.5, [1, 0], [1, 1]));
        // Rounding may put the least confident one of three just below a third.
        assert_eq!(histogram_of(&[(0.333_333, false)], 3).bins[0], [0, 1]);
    }
}
