//! Fits the numbers of a policy to labelled images: a model's temperature and the models' weights; and divides the
//! images into folds, so that what was fitted on some is judged on others.
//!
//! Every fit starts from what a policy has where nothing is fitted (the temperature 1, equal weights) and is drawn
//! towards it by a prior that counts for [`PRIOR_IMAGES`] images: of few images chance says more than the models
//! do. The same arguments give the same numbers.

use std::collections::BTreeMap;

use crate::evaluate::splitmix64;

#[cfg(test)]
pub(super) mod tests;

/// For how many images the prior of a fit counts: enough that a handful of images, or any number without a single
/// error, does not give an extreme, and too little to be seen in a fit of hundreds.
pub(super) const PRIOR_IMAGES: f64 = 1.0;

/// Beyond these a temperature says that the logits are not logits, or that there was nothing to fit.
const TEMPERATURE_MIN: f64 = 0.01;
const TEMPERATURE_MAX: f64 = 100.0;

/// The temperatures that are tried first have the same ratio, here 4/3, to the next one.
const TEMPERATURE_INTERVALS: u32 = 32;

/// Each leaves 0.618 of the interval in which the logarithm of the temperature lies, at first 0.58: 3e-7 at the end.
const GOLDEN_SECTIONS: u32 = 30;

/// What a section leaves: the inverse of the golden ratio.
const GOLDEN_SHARE: f64 = 0.618_033_988_749_894_9;

/// There is no weight 0 in a policy: such a model would cost its time and count for nothing.
pub(crate) const WEIGHT_MIN: f64 = 0.01;

/// With so many models that [`WEIGHT_MIN`] each would leave little to be distributed (50 or more), this part of an
/// equal share takes its place.
const WEIGHT_MIN_OF_EQUAL_SHARE: f64 = 0.5;

/// A fit of weights ends when no others can have a mean loss lower by more than this: far less than any data set of
/// images can tell apart.
pub(super) const MEAN_NLL_TOLERANCE: f64 = 1e-7;

/// Each is one pass over images x models. Of 240 synthetic sets (2,000 images, 2 to 8 models) 200 needed fewer than
/// 1,000; what these leave, where models are nearly alike or equally useless, is a mean NLL 5e-6 too high at most.
const EXPECTATION_STEPS_MAX: u32 = 10_000;

/// Each is one pass over images x models x classes, seldom two. Of the same sets 222 needed fewer than 100; the others
/// have logits of several hundred, which make the loss a polyhedron, and end within 2e-4 of its lowest.
const GRADIENT_STEPS_MAX: u32 = 300;

/// A step that is too long is halved this often; then no shorter one helps, for rounding hides what it would gain.
pub(super) const HALVINGS_MAX: i32 = 40;

/// The part of the descent that the slope promises which a step must give (Armijo 1966).
pub(super) const DESCENT_SHARE: f64 = 1e-4;

/// The temperature with the lowest mean NLL of softmax(logits / T) (Guo et al. 2017, arXiv 1706.04599), from
/// [`TEMPERATURE_MIN`] to [`TEMPERATURE_MAX`]; `None` where there are no images.
///
/// The prior costs `PRIOR_IMAGES` (ln T)^2: as though it were known beforehand that T is, with 95 % certainty,
/// between 1/4 and 4. Without it the best temperature of a model that makes no error is 0: it would claim to be
/// infinitely sure after any number of images, three or three thousand.
///
/// # Panics
/// When there is not one label for each image, or no logit for a label.
pub(crate) fn temperature(logits: &[&[f32]], labels: &[usize]) -> Option<f64> {
    check_image_count(logits.len(), labels);
    if labels.is_empty() {
        return None;
    }
    let loss = |ln_temperature: f64| {
        let temperature = ln_temperature.exp();
        let images = logits.iter().zip(labels);
        let nll: f64 = images.map(|(logits, &label)| nll_at(logits, label, temperature)).sum();
        nll + PRIOR_IMAGES * ln_temperature * ln_temperature
    };
    // The NLL alone is convex in 1 / T and has one minimum. With the prior there may be two, so the whole range is
    // looked at first.
    let (lowest, highest) = (TEMPERATURE_MIN.ln(), TEMPERATURE_MAX.ln());
    let width = (highest - lowest) / f64::from(TEMPERATURE_INTERVALS);
    let (mut best, mut best_loss) = (lowest, loss(lowest));
    for interval in 1..=TEMPERATURE_INTERVALS {
        let candidate = lowest + width * f64::from(interval);
        let candidate_loss = loss(candidate);
        if candidate_loss < best_loss {
            (best, best_loss) = (candidate, candidate_loss);
        }
    }
    let ln_temperature = minimum_between((best - width).max(lowest), (best + width).min(highest), loss);
    Some(ln_temperature.exp().clamp(TEMPERATURE_MIN, TEMPERATURE_MAX))
}

/// -ln softmax(logits / T) at the label, in the form that cannot overflow.
fn nll_at(logits: &[f32], label: usize, temperature: f64) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let below_largest = |logit: f32| (largest - f64::from(logit)) / temperature;
    let sum: f64 = logits.iter().map(|&logit| (-below_largest(logit)).exp()).sum();
    sum.ln() + below_largest(logits[label])
}

/// Where `loss` has its minimum, by golden sections (Kiefer 1953).
fn minimum_between(mut low: f64, mut high: f64, loss: impl Fn(f64) -> f64) -> f64 {
    let left_of = |low: f64, high: f64| high - GOLDEN_SHARE * (high - low);
    let right_of = |low: f64, high: f64| low + GOLDEN_SHARE * (high - low);
    let (mut left, mut right) = (left_of(low, high), right_of(low, high));
    let (mut left_loss, mut right_loss) = (loss(left), loss(right));
    for _ in 0..GOLDEN_SECTIONS {
        if left_loss <= right_loss {
            (high, right, right_loss) = (right, left, left_loss);
            left = left_of(low, high);
            left_loss = loss(left);
        } else {
            (low, left, left_loss) = (left, right, right_loss);
            right = right_of(low, high);
            right_loss = loss(right);
        }
    }
    f64::midpoint(low, high)
}

/// The weights with the highest mean logarithm of the weighted mean of the models' probabilities at the label: the
/// best for linear fusion, and what stacking is for distributions (Wolpert 1992; Breiman 1996, "Stacked
/// regressions"). They have the sum 1, and none is below [`WEIGHT_MIN`]. `None` where there are no models or no
/// images.
///
/// `probabilities[model][image]` has a probability for each class. The prior is Dirichlet's, as though
/// `PRIOR_IMAGES` images had been explained by all models in equal parts. Found by expectation maximisation
/// (Dempster et al. 1977), of which no step can make it worse.
///
/// # Panics
/// When a model does not have one answer for each label, or an answer no probability for its label.
pub(crate) fn mixture_weights(probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Option<Vec<f64>> {
    let mut weights = equal_weights(probabilities, labels)?;
    let models = weights.len();
    let likelihoods = relative_likelihoods(probabilities, labels);
    let images = labels.len() as f64 + PRIOR_IMAGES;
    for _ in 0..EXPECTATION_STEPS_MAX {
        // How many of the images each model explains.
        let mut explained = vec![PRIOR_IMAGES / models as f64; models];
        for likelihoods in likelihoods.chunks_exact(models) {
            let mixed = dot(&weights, likelihoods);
            for ((explained, weight), likelihood) in explained.iter_mut().zip(&weights).zip(likelihoods) {
                *explained += weight * likelihood / mixed;
            }
        }
        let gradient: Vec<f64> =
            explained.iter().zip(&weights).map(|(explained, weight)| -explained / weight / images).collect();
        if gain_max(&weights, &gradient) < MEAN_NLL_TOLERANCE {
            break;
        }
        weights = shares(&explained);
    }
    Some(weights)
}

/// For one image after the other, each model's probability of the label in relation to the highest one: what does
/// not change an image's best weights, and keeps the smallest probabilities from vanishing.
fn relative_likelihoods(probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Vec<f64> {
    let mut likelihoods = Vec::with_capacity(labels.len() * probabilities.len());
    for (image, &label) in labels.iter().enumerate() {
        let of_label = || probabilities.iter().map(|answers| answers[image][label]);
        let highest = of_label().fold(0.0, f64::max);
        // What all models rule out tells nothing about their weights.
        likelihoods.extend(of_label().map(|one| if highest > 0.0 { one / highest } else { 1.0 }));
    }
    likelihoods
}

/// Weights in proportion to `counts`, those that are too low raised to the minimum. No others that are high enough
/// have a higher sum of count x ln(weight).
fn shares(counts: &[f64]) -> Vec<f64> {
    let min = weight_min(counts.len());
    let mut ascending = counts.to_vec();
    ascending.sort_by(f64::total_cmp);
    let mut share_left = 1.0;
    let mut count_left: f64 = counts.iter().sum();
    // Raising one lowers those above it, of which the next may then be too low as well.
    for count in ascending {
        if count * share_left / count_left >= min {
            break;
        }
        share_left -= min;
        count_left -= count;
    }
    counts.iter().map(|count| (count * share_left / count_left).max(min)).collect()
}

/// The weights with the lowest mean NLL of the weighted mean of the models' log-probabilities, renormalised: the best
/// for log-linear fusion (Genest and Zidek 1986, "Combining probability distributions"). They have the sum 1, and none
/// is below [`WEIGHT_MIN`]. `None` where there are no models or no images.
///
/// `log_probabilities[model][image]` has one for each class, all finite. The prior costs `PRIOR_IMAGES` x the sum of
/// squared differences from equal weights, which for all weight on one of many models is 1. The whole is convex,
/// and is minimised by projected gradients with the step lengths of Barzilai and Borwein (1988) and a line search
/// (Birgin, Martínez and Raydan 2000, "Nonmonotone spectral projected gradient methods on convex sets"; here monotone).
///
/// # Panics
/// When a model does not have one answer for each label, or answers differ in their classes or lack their label.
pub(crate) fn product_weights(log_probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Option<Vec<f64>> {
    let mut weights = equal_weights(log_probabilities, labels)?;
    let mut loss = ProductLoss::at(&weights, log_probabilities, labels);
    let curvature_min = ProductLoss::curvature_min(labels.len());
    // At first, so much that a step of the steepest gradient moves a weight by 1.
    let steepest = loss.gradient.iter().map(|slope| slope.abs()).fold(0.0, f64::max);
    let mut curvature = steepest.max(curvature_min);
    for _ in 0..GRADIENT_STEPS_MAX {
        if gain_max(&weights, &loss.gradient) < MEAN_NLL_TOLERANCE {
            break;
        }
        let target = projected(&moved(&weights, &loss.gradient, -1.0 / curvature));
        let direction = moved(&target, &weights, -1.0);
        let promised = -dot(&direction, &loss.gradient);
        let step_lengths = (0..HALVINGS_MAX).map(|halvings| 0.5_f64.powi(halvings));
        let mut steps = step_lengths.map(|length| {
            let candidate = moved(&weights, &direction, length);
            let candidate_loss = ProductLoss::at(&candidate, log_probabilities, labels);
            (length, candidate, candidate_loss)
        });
        let found = steps.find(|(length, _, candidate_loss)| {
            candidate_loss.value <= loss.value - DESCENT_SHARE * length * promised
        });
        let Some((_, next_weights, next_loss)) = found else { break };
        let step = moved(&next_weights, &weights, -1.0);
        let bend = moved(&next_loss.gradient, &loss.gradient, -1.0);
        curvature = (dot(&step, &bend) / dot(&step, &step)).max(curvature_min);
        (weights, loss) = (next_weights, next_loss);
    }
    Some(weights)
}

/// The mean NLL of the log-linear fusion with the prior's cost, and its derivative by each weight.
struct ProductLoss {
    value: f64,
    gradient: Vec<f64>,
}

impl ProductLoss {
    fn at(weights: &[f64], log_probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Self {
        let images = labels.len() as f64;
        let mut nll = 0.0;
        let mut gradient = vec![0.0; weights.len()];
        let mut fused = Vec::new();
        for (image, &label) in labels.iter().enumerate() {
            fused.clear();
            fused.resize(log_probabilities[0][image].len(), 0.0);
            for (answers, weight) in log_probabilities.iter().zip(weights) {
                for (total, logarithm) in fused.iter_mut().zip(answers[image]) {
                    *total += weight * logarithm;
                }
            }
            let of_label = fused[label];
            let largest = fused.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for total in &mut fused {
                *total = (*total - largest).exp();
            }
            let sum: f64 = fused.iter().sum();
            nll += sum.ln() + largest - of_label;
            for (slope, answers) in gradient.iter_mut().zip(log_probabilities) {
                *slope += dot(&fused, answers[image]) / sum - answers[image][label];
            }
        }
        let equal = 1.0 / weights.len() as f64;
        let prior: f64 = weights.iter().map(|weight| (weight - equal) * (weight - equal)).sum();
        for (slope, weight) in gradient.iter_mut().zip(weights) {
            *slope = (*slope + 2.0 * PRIOR_IMAGES * (weight - equal)) / images;
        }
        Self { value: (nll + PRIOR_IMAGES * prior) / images, gradient }
    }

    /// The second derivative of the prior's cost in any direction; the NLL only adds to it.
    fn curvature_min(images: usize) -> f64 {
        2.0 * PRIOR_IMAGES / images as f64
    }
}

/// The nearest weights with the sum 1 and none below the minimum (Duchi et al. 2008, "Efficient projections onto
/// the l1-ball").
fn projected(point: &[f64]) -> Vec<f64> {
    let min = weight_min(point.len());
    let to_distribute = 1.0 - min * point.len() as f64;
    let mut descending = point.to_vec();
    descending.sort_by(|left, right| right.total_cmp(left));
    // Relative to the largest, so that nothing is lost to rounding where all are far away.
    let largest = descending[0];
    let (mut sum, mut threshold) = (0.0, -to_distribute);
    for (count, value) in (1..).zip(&descending) {
        sum += value - largest;
        let candidate = (sum - to_distribute) / f64::from(count);
        if value - largest <= candidate {
            break;
        }
        threshold = candidate;
    }
    point.iter().map(|value| min + (value - largest - threshold).max(0.0)).collect()
}

/// By how much the loss can be lower with other weights, at most: a convex function lies above its tangents, and a
/// tangent is lowest where all that may be distributed is on the model with the lowest slope (Frank and Wolfe 1956).
fn gain_max(weights: &[f64], gradient: &[f64]) -> f64 {
    let min = weight_min(weights.len());
    let lowest = gradient.iter().copied().fold(f64::INFINITY, f64::min);
    weights.iter().zip(gradient).map(|(weight, slope)| (weight - min) * (slope - lowest)).sum()
}

/// The lowest weight that one of so many models may have.
fn weight_min(models: usize) -> f64 {
    WEIGHT_MIN.min(WEIGHT_MIN_OF_EQUAL_SHARE / models as f64)
}

/// Where a fit of weights starts; `None` where there is nothing to fit.
fn equal_weights(answers: &[Vec<&[f64]>], labels: &[usize]) -> Option<Vec<f64>> {
    for of_model in answers {
        check_image_count(of_model.len(), labels);
        for (one, of_first_model) in of_model.iter().zip(&answers[0]) {
            assert_eq!(one.len(), of_first_model.len(), "the same classes from every model");
        }
    }
    let models = answers.len();
    (models > 0 && !labels.is_empty()).then(|| vec![1.0 / models as f64; models])
}

pub(super) fn check_image_count(answers: usize, labels: &[usize]) {
    assert_eq!(answers, labels.len(), "one answer for each label");
}

pub(super) fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

pub(super) fn moved(from: &[f64], direction: &[f64], length: f64) -> Vec<f64> {
    from.iter().zip(direction).map(|(from, direction)| from + length * direction).collect()
}

/// The fold, below `count`, of each image: whole groups, because images of one patient, slide or video say nearly the
/// same, and each class spread evenly.
///
/// The groups are dealt out one by one, sorted by the label of their first image and within a label at random: the
/// groups of a label, and all groups, are then as many in one fold as in any other, give or take one. A fold may be
/// empty where there are fewer groups than folds.
///
/// # Panics
/// When there is not one group for each label, or no fold.
pub(crate) fn folds(groups: &[usize], labels: &[usize], count: usize, seed: u64) -> Vec<usize> {
    check_image_count(groups.len(), labels);
    assert!(count > 0, "at least one fold");
    let mut label_of_group = BTreeMap::new();
    for (&group, &label) in groups.iter().zip(labels) {
        label_of_group.entry(group).or_insert(label);
    }
    let mut dealt: Vec<(usize, u64, usize)> = label_of_group
        .iter()
        .map(|(&group, &label)| (label, splitmix64(splitmix64(seed) ^ group as u64), group))
        .collect();
    dealt.sort_unstable();
    let fold_of_group: BTreeMap<usize, usize> =
        dealt.iter().enumerate().map(|(position, &(.., group))| (group, position % count)).collect();
    groups.iter().map(|group| fold_of_group[group]).collect()
}
