//! How good a set of answers is: figures over labelled images, each with its 95 % interval.
//!
//! Every figure is a function of how often each image counts: once in the figure itself, as often as it was drawn
//! in a resample. What does not depend on that (argmax, logarithms, sorted orders) is computed once, because a
//! resample must cost no more than one pass over images x classes: 1,000 of them for 6,315 images of 43 classes
//! take half a second an answerer, most of it in the areas under the ROC curves (`many_classes_take_seconds`).

pub(crate) use super::bootstrap::Resampling;
use super::bootstrap::interval;

#[cfg(test)]
mod tests;

/// One image's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Scored<'a> {
    /// For each class, with the sum 1.
    pub(crate) probabilities: &'a [f64],
    /// The class that it truly is.
    pub(crate) label: usize,
}

/// A figure with the 2.5 and 97.5 percentiles of what it is in the resamples.
///
/// The interval need not contain the value: a resample repeats images, which raises a figure that adds up
/// differences without their signs, as the calibration error does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// On all images, each once.
    pub(crate) value: f64,
    /// The lower end of the interval.
    pub(crate) low: f64,
    /// The upper end of the interval.
    pub(crate) high: f64,
}

impl Figure {
    /// What a figure that is 0 by convention has.
    const ZERO: Self = Self { value: 0.0, low: 0.0, high: 0.0 };

    fn new(value: f64, resampled: impl Iterator<Item = f64>) -> Self {
        let (low, high) = interval(resampled);
        Self { value, low, high }
    }
}

impl Resampling {
    /// The mean of a number that each image has.
    pub(crate) fn mean(&self, numbers: &[f64]) -> Figure {
        let value = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let (low, high) = self.interval(|weights| {
            let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let sum: f64 =
                numbers.iter().zip(weights).map(|(number, &weight)| number * f64::from(weight)).sum();
            (total > 0.0).then(|| sum / total)
        });
        Figure { value, low, high }
    }
}

/// How a set of answers is measured. The answer is the most probable class; of several equal ones, the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    /// The share of right answers.
    pub(crate) accuracy: Figure,
    /// The mean recall of the classes that occur.
    pub(crate) balanced_accuracy: Figure,
    /// Matthews' correlation for any number of classes (Gorodkin 2004, "Comparing two K-category assignments by a
    /// K-category correlation coefficient"). 0 where the answer is always the same or only one class occurs.
    pub(crate) mcc: Figure,
    /// F1: of two classes, that of class 1, and 0 where class 1 neither occurs nor is answered; of more, the mean
    /// over the classes that occur.
    pub(crate) f1: Figure,
    /// The area under the ROC curve: of two classes, by the probability of class 1; of more, the mean of each class
    /// against the rest, over the classes that occur. `None` where fewer than two occur.
    pub(crate) auroc: Option<Figure>,
    /// The mean negative natural logarithm of the true class's probability.
    pub(crate) nll: Figure,
    /// The mean over images of the sum over classes of squared errors, from 0 to 2 (Brier 1950, "Verification of
    /// forecasts expressed in terms of probability").
    pub(crate) brier: Figure,
    /// The expected calibration error in 15 bins of equal width (Guo et al. 2017, arXiv 1706.04599).
    pub(crate) ece: Figure,
    /// The area under the risk-coverage curve: the error rate among the k most confident answers, averaged over all
    /// k (Geifman and El-Yaniv 2017, arXiv 1705.08500; Geifman et al. 2019, arXiv 1805.08206).
    pub(crate) aurc: Figure,
    /// The class with the lowest recall (of equal ones, the first) and its recall.
    ///
    /// It is chosen by all images, so its value is low in part by chance.
    pub(crate) worst_class: Option<(usize, Figure)>,
}

/// Measures answers about the images that were resampled, in the same order; `None` where there are none.
///
/// A resample for which a figure is undefined does not count in that figure's interval.
///
/// # Panics
/// When there is not one answer for each resampled image, or an answer does not have `classes` probabilities and
/// one of the classes as its label.
pub(crate) fn measure(answers: &[Scored<'_>], classes: usize, resampling: &Resampling) -> Option<Measured> {
    assert_eq!(answers.len(), resampling.images(), "one answer for each resampled image");
    if answers.is_empty() {
        return None;
    }
    let prepared = Prepared::new(answers, classes);
    let whole = prepared.values(&vec![1; answers.len()]);
    let resampled: Vec<Values> = resampling.weights().map(|weights| prepared.values(weights)).collect();

    let figure = |of: fn(&Values) -> f64| Figure::new(of(&whole), resampled.iter().map(of));
    let figure_if_defined = |of: fn(&Values) -> Option<f64>| {
        of(&whole).map(|value| Figure::new(value, resampled.iter().filter_map(of)))
    };
    let worst_class = lowest_recall(&whole.classes).map(|(class, recall)| {
        (class, Figure::new(recall, resampled.iter().filter_map(|values| values.classes[class].recall())))
    });
    Some(Measured {
        accuracy: figure(|values| values.accuracy),
        balanced_accuracy: figure(|values| values.balanced_accuracy),
        mcc: figure_if_defined(|values| values.mcc).unwrap_or(Figure::ZERO),
        f1: figure_if_defined(|values| values.f1).unwrap_or(Figure::ZERO),
        auroc: figure_if_defined(|values| values.auroc),
        nll: figure(|values| values.nll),
        brier: figure(|values| values.brier),
        ece: figure(|values| values.ece),
        aurc: figure(|values| values.aurc),
        worst_class,
    })
}

/// Scores in ascending order, each of a positive or a negative.
#[derive(Debug, Clone)]
pub(crate) struct Ranking(Vec<Ranked>);

/// A small entry: a ranking for each of many classes is read through for every resample.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    image: u32,
    is_positive: bool,
    ties_with_next: bool,
}

/// How many positives and negatives share one score.
#[derive(Debug, Clone, Copy, Default)]
struct Tied {
    positives: u64,
    negatives: u64,
}

impl Ranking {
    /// Sorts the scores, each with whether it is a positive's.
    pub(crate) fn new(scored: impl Iterator<Item = (f64, bool)>) -> Self {
        let mut sorted: Vec<(f64, bool, u32)> =
            (0..).zip(scored).map(|(image, (score, is_positive))| (score, is_positive, image)).collect();
        sorted.sort_by(|left, right| left.0.total_cmp(&right.0));
        let next_scores = sorted.iter().skip(1).map(|&(score, ..)| Some(score)).chain([None]);
        let ranked = sorted.iter().zip(next_scores).map(|(&(score, is_positive, image), next_score)| {
            Ranked { image, is_positive, ties_with_next: next_score == Some(score) }
        });
        Self(ranked.collect())
    }

    /// The area under the ROC curve: the share of pairs of a positive and a negative in which the positive has the higher
    /// score; equal scores count half (the statistic of Mann and Whitney, 1947). `None` where either is missing. Each
    /// entry counts as often as its weight says.
    pub(crate) fn auroc(&self, weights: &[u16]) -> Option<f64> {
        // In whole numbers, so that no order of adding up can change it: twice the pairs that are in order.
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

    /// What has the lowest score, the next higher one, and so on.
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

/// What the figures need of answers, however often each counts.
struct Prepared {
    answers: Vec<Answer>,
    classes: usize,
    /// The probabilities that the area under the ROC curve averages over: of class 1, or of each of many classes.
    rankings: Vec<Ranking>,
    /// The most confident answers first, wrong ones as the positives.
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
    fn new(scored: &Scored<'_>) -> Self {
        let Scored { probabilities, label } = *scored;
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

/// Of several equal ones the first, as Concord answers.
pub(super) fn argmax(probabilities: &[f64]) -> usize {
    let mut best = 0;
    for (index, probability) in probabilities.iter().enumerate() {
        if *probability > probabilities[best] {
            best = index;
        }
    }
    best
}

/// What the true class's probability is raised to when it is lower: one answer that rules the truth out would make
/// the mean logarithm infinite, and hide what all the others say. It then costs 27.6.
const PROBABILITY_MIN: f64 = 1e-12;

/// The negative natural logarithm of the true class's probability.
pub(crate) fn log_loss(probabilities: &[f64], label: usize) -> f64 {
    -probabilities[label].max(PROBABILITY_MIN).ln()
}

/// As many as Guo et al. (2017) use, so that the error can be compared with published ones.
pub(super) const CALIBRATION_BINS: usize = 15;

/// A bin holds its upper edge, not its lower one, as in Guo et al. (2017).
pub(super) fn calibration_bin(confidence: f64) -> usize {
    let bins_up_to_it = (confidence * CALIBRATION_BINS as f64).ceil() as usize;
    bins_up_to_it.clamp(1, CALIBRATION_BINS) - 1
}

/// The figures for one choice of weights; `None` where one is undefined.
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
    fn new(scored: &[Scored<'_>], classes: usize) -> Self {
        for one in scored {
            assert_eq!(one.probabilities.len(), classes, "one probability for each class");
            assert!(one.label < classes, "label {} of {classes} classes", one.label);
        }
        let answers: Vec<Answer> = scored.iter().map(Answer::new).collect();
        let ranked_classes = if classes == 2 { 1..2 } else { 0..classes };
        let ranking_of = |class| {
            Ranking::new(scored.iter().map(move |one| (one.probabilities[class], one.label == class)))
        };
        let rankings = ranked_classes.map(ranking_of).collect();
        let by_confidence =
            Ranking::new(answers.iter().map(|answer| (-answer.confidence, !answer.is_right())));
        Self { answers, classes, rankings, by_confidence }
    }

    /// The figures where each answer counts as often as its weight says; at least one counts.
    fn values(&self, weights: &[u16]) -> Values {
        let mut classes = vec![ClassCounts::default(); self.classes];
        let (mut log_loss, mut squared_error) = (0.0, 0.0);
        // Right answers minus confidences: a bin's gap between accuracy and confidence, times its answers.
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

    /// Among equally confident answers the wrong ones are spread evenly, so that no order of them matters.
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

/// How often a class is the truth, the answer, and both.
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

    /// 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen 1979).
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

/// (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)) with c right answers of s, and p answers and t
/// occurrences of each class (Gorodkin 2004). For constant answers 0, which is its limit; `None` where only one
/// class occurs.
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
