//! Metrics of predictions on labeled images, each with its 95 % interval.
//!
//! Every metric is a function of each image's weight: 1 in the metric itself, and the number of times it was
//! drawn in a resample. The parts that do not depend on weights (argmax, logarithms, sorted orders) are
//! computed once, because a resample must cost no more than one pass over images x classes: 1,000 of them for
//! 6,315 images of 43 classes take half a second per strategy, most of it in the areas under the ROC curves
//! (`many_classes_take_seconds`).

pub(crate) use super::bootstrap::Bootstrap;
use super::bootstrap::interval;

#[cfg(test)]
mod tests;

/// A prediction for one image, with the true label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Prediction<'a> {
    /// The probability of each class; their sum is 1.
    pub(crate) probabilities: &'a [f64],
    /// The true class.
    pub(crate) label: usize,
}

/// An estimate of a metric with its 95 % interval: the 2.5 and 97.5 percentiles of its values in the
/// resamples.
///
/// The interval need not contain the value: a resample repeats images, which biases a metric upwards that
/// adds up absolute differences, as the calibration error does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// The value on all images, each counted once.
    pub(crate) value: f64,
    /// The lower end of the interval.
    pub(crate) low: f64,
    /// The upper end of the interval.
    pub(crate) high: f64,
}

impl Estimate {
    /// The estimate of a metric that is 0 by convention.
    const ZERO: Self = Self { value: 0.0, low: 0.0, high: 0.0 };

    fn new(value: f64, resampled: impl Iterator<Item = f64>) -> Self {
        let (low, high) = interval(resampled);
        Self { value, low, high }
    }
}

impl Bootstrap {
    /// Estimates the mean of `numbers`, which has one number for each image.
    pub(crate) fn mean(&self, numbers: &[f64]) -> Estimate {
        let value = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let (low, high) = self.interval(|weights| {
            let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let sum: f64 =
                numbers.iter().zip(weights).map(|(number, &weight)| number * f64::from(weight)).sum();
            (total > 0.0).then(|| sum / total)
        });
        Estimate { value, low, high }
    }
}

/// The metrics of a set of predictions. The predicted class is the most probable one; among equally probable
/// ones, the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ClassificationMetrics {
    /// The share of right predictions.
    pub(crate) accuracy: Estimate,
    /// The mean recall over the classes that occur.
    pub(crate) balanced_accuracy: Estimate,
    /// Matthews' correlation for any number of classes (Gorodkin 2004, "Comparing two K-category assignments
    /// by a K-category correlation coefficient"). 0 if the prediction is always the same or only one class
    /// occurs.
    pub(crate) mcc: Estimate,
    /// F1. With two classes it is that of class 1, and 0 if class 1 neither occurs nor is predicted; with
    /// more, the mean over the classes that occur.
    pub(crate) f1: Estimate,
    /// The area under the ROC curve. With two classes it is that of the probability of class 1; with more,
    /// the mean of each class against the rest, over the classes that occur. `None` if fewer than two occur.
    pub(crate) auroc: Option<Estimate>,
    /// The mean negative natural logarithm of the true class's probability.
    pub(crate) nll: Estimate,
    /// The mean over images of the sum over classes of squared errors, from 0 to 2 (Brier 1950, "Verification
    /// of forecasts expressed in terms of probability").
    pub(crate) brier: Estimate,
    /// The expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599).
    pub(crate) ece: Estimate,
    /// The area under the risk-coverage curve: the error rate among the k most confident answers, averaged
    /// over all k (Geifman and El-Yaniv 2017, arXiv 1705.08500; Geifman et al. 2019, arXiv 1805.08206).
    pub(crate) aurc: Estimate,
    /// The class with the lowest recall (of equal ones, the first) and its recall.
    ///
    /// The class is chosen on the same images, so its recall is biased downwards.
    pub(crate) worst_class: Option<(usize, Estimate)>,
}

/// Computes the metrics of predictions for the images of `bootstrap`, in the same order; `None` if there are
/// none.
///
/// A resample in which a metric is undefined is left out of that metric's interval.
///
/// # Panics
/// When there is not one prediction for each resampled image, or a prediction does not have `classes`
/// probabilities and a label below `classes`.
pub(crate) fn measure(
    answers: &[Prediction<'_>],
    classes: usize,
    bootstrap: &Bootstrap,
) -> Option<ClassificationMetrics> {
    assert_eq!(answers.len(), bootstrap.images(), "one answer for each resampled image");
    if answers.is_empty() {
        return None;
    }
    let prepared = Prepared::new(answers, classes);
    let whole = prepared.values(&vec![1; answers.len()]);
    let resampled: Vec<Values> = bootstrap.weights().map(|weights| prepared.values(weights)).collect();

    let estimate = |of: fn(&Values) -> f64| Estimate::new(of(&whole), resampled.iter().map(of));
    let estimate_if_defined = |of: fn(&Values) -> Option<f64>| {
        of(&whole).map(|value| Estimate::new(value, resampled.iter().filter_map(of)))
    };
    let worst_class = lowest_recall(&whole.classes).map(|(class, recall)| {
        (class, Estimate::new(recall, resampled.iter().filter_map(|values| values.classes[class].recall())))
    });
    Some(ClassificationMetrics {
        accuracy: estimate(|values| values.accuracy),
        balanced_accuracy: estimate(|values| values.balanced_accuracy),
        mcc: estimate_if_defined(|values| values.mcc).unwrap_or(Estimate::ZERO),
        f1: estimate_if_defined(|values| values.f1).unwrap_or(Estimate::ZERO),
        auroc: estimate_if_defined(|values| values.auroc),
        nll: estimate(|values| values.nll),
        brier: estimate(|values| values.brier),
        ece: estimate(|values| values.ece),
        aurc: estimate(|values| values.aurc),
        worst_class,
    })
}

/// The scores of positives and negatives, in ascending order.
#[derive(Debug, Clone)]
pub(crate) struct Ranking(Vec<Ranked>);

/// An entry of a ranking. It is small, because every resample reads through a ranking of each of many
/// classes.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    image: u32,
    is_positive: bool,
    ties_with_next: bool,
}

/// The number of positives and of negatives that share one score.
#[derive(Debug, Clone, Copy, Default)]
struct Tied {
    positives: u64,
    negatives: u64,
}

impl Ranking {
    /// Sorts scores, each paired with `true` if it is a positive's.
    pub(crate) fn new(predictions: impl Iterator<Item = (f64, bool)>) -> Self {
        let mut sorted: Vec<(f64, bool, u32)> =
            (0..).zip(predictions).map(|(image, (score, is_positive))| (score, is_positive, image)).collect();
        sorted.sort_by(|left, right| left.0.total_cmp(&right.0));
        let next_scores = sorted.iter().skip(1).map(|&(score, ..)| Some(score)).chain([None]);
        let ranked = sorted.iter().zip(next_scores).map(|(&(score, is_positive, image), next_score)| {
            Ranked { image, is_positive, ties_with_next: next_score == Some(score) }
        });
        Self(ranked.collect())
    }

    /// Returns the area under the ROC curve, where each entry has a weight: the share of pairs of a positive
    /// and a negative in which the positive has the higher score; equal scores count half (the statistic of
    /// Mann and Whitney, 1947). `None` if there are no positives or no negatives.
    pub(crate) fn auroc(&self, weights: &[u16]) -> Option<f64> {
        // Twice the number of ordered pairs: an integer, so that the order of summation does not matter.
        let mut twice_ordered_pairs = 0;
        let mut below = Tied::default();
        for tied in self.ties(weights) {
            twice_ordered_pairs += tied.positives * (2 * below.negatives + tied.negatives);
            below.positives += tied.positives;
            below.negatives += tied.negatives;
        }
        let pairs = below.positives * below.negatives;
        (pairs > 0).then(|| twice_ordered_pairs as f64 / (2 * pairs) as f64)
    }

    /// Returns the counts of each distinct score, in ascending order of scores.
    fn ties(&self, weights: &[u16]) -> impl Iterator<Item = Tied> {
        let runs = self.0.chunk_by(|ranked, _| ranked.ties_with_next);
        runs.map(|run| {
            let mut tied = Tied::default();
            for ranked in run {
                let weight = u64::from(weights[ranked.image as usize]);
                if ranked.is_positive {
                    tied.positives += weight;
                } else {
                    tied.negatives += weight;
                }
            }
            tied
        })
    }
}

/// The parts of all metrics that do not depend on weights.
struct Prepared {
    answers: Vec<Answer>,
    classes: usize,
    /// The rankings whose areas under the ROC curve are averaged: that of class 1, or of each of more than
    /// two classes.
    rankings: Vec<Ranking>,
    /// The most confident predictions first; wrong ones are the positives.
    by_confidence: Ranking,
}

struct Answer {
    label: usize,
    predicted: usize,
    confidence: f64,
    bin: usize,
    log_loss: f64,
    squared_error: f64,
}

impl Answer {
    fn new(predictions: &Prediction<'_>) -> Self {
        let Prediction { probabilities, label } = *predictions;
        let predicted = argmax(probabilities);
        let confidence = probabilities[predicted];
        let true_one = |class| if class == label { 1.0 } else { 0.0 };
        let errors =
            probabilities.iter().enumerate().map(|(class, probability)| probability - true_one(class));
        Self {
            label,
            predicted,
            confidence,
            bin: calibration_bin(confidence),
            log_loss: log_loss(probabilities, label),
            squared_error: errors.map(|error| error * error).sum(),
        }
    }

    fn is_right(&self) -> bool {
        self.predicted == self.label
    }
}

/// Returns the index of the largest probability; among equal ones the first, as a verdict does.
pub(super) fn argmax(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (index, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = index;
        }
    }
    best
}

/// The lower limit of the true class's probability in the log loss: a single prediction that rules the truth
/// out would make the mean infinite, and hide all others. It costs 27.6 instead.
const PROBABILITY_MIN: f64 = 1e-12;

/// Returns the negative natural logarithm of the true class's probability.
pub(crate) fn log_loss(probabilities: &[f64], label: usize) -> f64 {
    -probabilities[label].max(PROBABILITY_MIN).ln()
}

/// The number of bins of the calibration error: that of Guo et al. (2017), so that it can be compared with
/// published errors.
pub(super) const CALIBRATION_BINS: usize = 15;

/// Returns the bin of a confidence. A bin includes its upper edge, not its lower one, as in Guo et al.
/// (2017).
pub(super) fn calibration_bin(confidence: f64) -> usize {
    let bins_up_to_it = (confidence * CALIBRATION_BINS as f64).ceil() as usize;
    bins_up_to_it.clamp(1, CALIBRATION_BINS) - 1
}

/// The metrics for one choice of weights; `None` where one is undefined.
struct Values {
    classes: Vec<ClassCounts>,
    accuracy: f64,
    balanced_accuracy: f64,
    mcc: Option<f64>,
    f1: Option<f64>,
    auroc: Option<f64>,
    nll: f64,
    brier: f64,
    ece: f64,
    aurc: f64,
}

impl Prepared {
    fn new(predictions: &[Prediction<'_>], classes: usize) -> Self {
        for one in predictions {
            assert_eq!(one.probabilities.len(), classes, "one probability for each class");
            assert!(one.label < classes, "label {} of {classes} classes", one.label);
        }
        let answers: Vec<Answer> = predictions.iter().map(Answer::new).collect();
        let ranked_classes = if classes == 2 { 1..2 } else { 0..classes };
        let ranking_of = |class| {
            Ranking::new(predictions.iter().map(move |one| (one.probabilities[class], one.label == class)))
        };
        let rankings = ranked_classes.map(ranking_of).collect();
        let by_confidence =
            Ranking::new(answers.iter().map(|answer| (-answer.confidence, !answer.is_right())));
        Self { answers, classes, rankings, by_confidence }
    }

    /// Computes the metrics for these weights, of which at least one is not 0.
    fn values(&self, weights: &[u16]) -> Values {
        let mut classes = vec![ClassCounts::default(); self.classes];
        let (mut log_loss, mut squared_error) = (0.0, 0.0);
        // The sum of (1 if right, else 0) - confidence: a bin's gap between accuracy and confidence, times
        // its count.
        let mut gaps = [0.0; CALIBRATION_BINS];
        for (answer, &weight) in self.answers.iter().zip(weights) {
            let (count, weight) = (u64::from(weight), f64::from(weight));
            classes[answer.label].occurs += count;
            classes[answer.predicted].predicted += count;
            let mut right = 0.0;
            if answer.is_right() {
                classes[answer.label].right += count;
                right = weight;
            }
            gaps[answer.bin] += right - weight * answer.confidence;
            log_loss += weight * answer.log_loss;
            squared_error += weight * answer.squared_error;
        }
        let total = classes.iter().map(|class| class.occurs).sum::<u64>() as f64;
        let right = classes.iter().map(|class| class.right).sum::<u64>() as f64;
        let recalls = classes.iter().filter_map(ClassCounts::recall);
        Values {
            accuracy: right / total,
            balanced_accuracy: mean(recalls).unwrap_or(0.0),
            mcc: correlation(&classes),
            f1: f1(&classes),
            auroc: mean(self.rankings.iter().filter_map(|ranking| ranking.auroc(weights))),
            nll: log_loss / total,
            brier: squared_error / total,
            ece: gaps.iter().map(|gap| gap.abs()).sum::<f64>() / total,
            aurc: self.area_under_risks(weights),
            classes,
        }
    }

    /// Returns the area under the risk-coverage curve. Among equally confident predictions the wrong ones are
    /// spread evenly, so that their order does not matter.
    fn area_under_risks(&self, weights: &[u16]) -> f64 {
        let (mut covered, mut wrong, mut sum_of_risks) = (0.0, 0.0, 0.0);
        for tied in self.by_confidence.ties(weights) {
            let count = tied.positives + tied.negatives;
            let wrong_share = tied.positives as f64 / count as f64;
            for _ in 0..count {
                covered += 1.0;
                wrong += wrong_share;
                sum_of_risks += wrong / covered;
            }
        }
        sum_of_risks / covered
    }
}

/// The number of times that a class is the true one, the predicted one, and both.
#[derive(Debug, Clone, Copy, Default)]
struct ClassCounts {
    occurs: u64,
    predicted: u64,
    right: u64,
}

impl ClassCounts {
    fn recall(&self) -> Option<f64> {
        (self.occurs > 0).then(|| self.right as f64 / self.occurs as f64)
    }

    /// Returns 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen 1979).
    fn f1(&self) -> Option<f64> {
        let all = self.occurs + self.predicted;
        (all > 0).then(|| (2 * self.right) as f64 / all as f64)
    }
}

fn lowest_recall(classes: &[ClassCounts]) -> Option<(usize, f64)> {
    let recalls = classes.iter().enumerate().filter_map(|(class, counts)| Some((class, counts.recall()?)));
    recalls.min_by(|left, right| left.1.total_cmp(&right.1))
}

fn f1(classes: &[ClassCounts]) -> Option<f64> {
    match classes {
        [_, of_class_1] => of_class_1.f1(),
        _ => mean(classes.iter().filter(|class| class.occurs > 0).filter_map(ClassCounts::f1)),
    }
}

/// Returns (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)) with c right predictions of s, and p
/// predictions and t occurrences of each class (Gorodkin 2004). For constant predictions it is 0, its limit;
/// `None` if only one class occurs.
fn correlation(classes: &[ClassCounts]) -> Option<f64> {
    let total = |of: fn(&ClassCounts) -> u64| classes.iter().map(of).sum::<u64>() as f64;
    let all = total(|class| class.occurs);
    let covariance = all * total(|class| class.right) - total(|class| class.occurs * class.predicted);
    let spread_of_answers = all * all - total(|class| class.predicted * class.predicted);
    let spread_of_truths = all * all - total(|class| class.occurs * class.occurs);
    if spread_of_truths == 0.0 {
        return None;
    }
    if spread_of_answers == 0.0 {
        return Some(0.0);
    }
    Some(covariance / (spread_of_answers * spread_of_truths).sqrt())
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    (count > 0.0).then(|| sum / count)
}
