//! Fits the numbers of a policy to labeled images: a model's temperature and the models' weights; and assigns
//! images to folds, so that a number that is fitted on some is evaluated on others. Pure.
//!
//! Every fit starts from the default of a policy (the temperature 1, equal weights) and is drawn towards it
//! by a prior that has the weight of [`PRIOR_IMAGES`] images, because few images say more about chance than
//! about the models. The same arguments give the same numbers.

use std::collections::BTreeMap;

use crate::evaluate::splitmix64;

#[cfg(test)]
pub(super) mod tests;

/// The weight of the prior of a fit, in images: enough that a handful of images, or any number without a
/// single error, does not give an extreme value, and too little to matter in a fit of hundreds.
pub(super) const PRIOR_IMAGES: f64 = 1.0;

/// The range of temperatures. One beyond it means that the logits are not logits, or that there was nothing
/// to fit.
const TEMPERATURE_MIN: f64 = 0.01;
const TEMPERATURE_MAX: f64 = 100.0;

/// The number of intervals of the temperatures that are tried first, each 4/3 of the one before.
const TEMPERATURE_INTERVALS: u32 = 32;

/// The number of golden sections. Each leaves 0.618 of the interval of the logarithm of the temperature,
/// which shrinks from 0.58 to 3e-7.
const GOLDEN_SECTIONS: u32 = 30;

/// The share that a section leaves: the inverse of the golden ratio.
const GOLDEN_SHARE: f64 = 0.618_033_988_749_894_9;

/// The least weight. A policy has no weight 0: such a model would cost its time and have no effect.
pub(crate) const WEIGHT_MIN: f64 = 0.01;

/// The least weight as a part of an equal share, which is used instead with so many models (50 or more) that
/// [`WEIGHT_MIN`] each would leave little to be distributed.
const WEIGHT_MIN_OF_EQUAL_SHARE: f64 = 0.5;

/// The tolerance of a fit of weights: it ends when no other weights can have a mean loss lower by more than
/// this, which is far less than any data set of images can resolve.
pub(super) const MEAN_NLL_TOLERANCE: f64 = 1e-7;

/// The largest number of expectation steps. Each is one pass over images x models. Of 240 synthetic sets
/// (2,000 images, 2 to 8 models) 200 needed fewer than 1,000 steps; for the others, whose models are nearly
/// alike or equally useless, the mean NLL ends at most 5e-6 too high.
const EXPECTATION_STEPS_MAX: u32 = 10_000;

/// The largest number of gradient steps. Each is one pass over images x models x classes, seldom two. Of the
/// same sets 222 needed fewer than 100; the others have logits of several hundred, which make the loss a
/// polyhedron, and end within 2e-4 of the minimum.
const GRADIENT_STEPS_MAX: u32 = 300;

/// The largest number of times that a step that is too long is halved; the gain of a shorter one is lost in
/// rounding.
pub(super) const HALVINGS_MAX: i32 = 40;

/// The share of the descent predicted by the slope that a step must achieve (Armijo 1966).
pub(super) const DESCENT_SHARE: f64 = 1e-4;

/// Fits the temperature with the lowest mean NLL of softmax(logits / T) (Guo et al. 2017, arXiv 1706.04599),
/// from [`TEMPERATURE_MIN`] to [`TEMPERATURE_MAX`]; `None` if there are no images.
///
/// The prior costs `PRIOR_IMAGES` (ln T)^2, as though it were known beforehand that T is, with 95 %
/// certainty, between 1/4 and 4. Without it the best temperature of a model that makes no error would be 0:
/// infinite confidence after any number of images, three or three thousand.
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
    // The NLL alone is convex in 1 / T and has one minimum. With the prior there may be two, so the whole
    // range is scanned first.
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

/// Returns -ln softmax(logits / T) at the label, in a form that cannot overflow.
fn nll_at(logits: &[f32], label: usize, temperature: f64) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let below_largest = |logit: f32| (largest - f64::from(logit)) / temperature;
    let sum: f64 = logits.iter().map(|&logit| (-below_largest(logit)).exp()).sum();
    sum.ln() + below_largest(logits[label])
}

/// Finds the minimum of `loss` by golden-section search (Kiefer 1953).
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

/// Fits the weights of the linear opinion pool with the lowest mean NLL of the weighted mean of the models'
/// probabilities, which is stacking of distributions (Wolpert 1992; Breiman 1996, "Stacked regressions").
/// Their sum is 1, and none is below [`WEIGHT_MIN`]. `None` if there are no models or no images.
///
/// `probabilities[model][image]` has a probability for each class. The prior is a Dirichlet distribution, as
/// though `PRIOR_IMAGES` images had been explained by all models in equal parts. The optimizer is expectation
/// maximization (Dempster et al. 1977), no step of which increases the loss.
///
/// # Panics
/// When a model does not have one answer for each label, or an answer no probability for its label.
pub(crate) fn linear_pool_weights(probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Option<Vec<f64>> {
    let mut weights = equal_weights(probabilities, labels)?;
    let models = weights.len();
    let likelihoods = relative_likelihoods(probabilities, labels);
    let images = labels.len() as f64 + PRIOR_IMAGES;
    for _ in 0..EXPECTATION_STEPS_MAX {
        // The number of images that each model explains.
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

/// Returns, for one image after the other, each model's probability of the label relative to the highest one:
/// the scaling does not change the best weights, and keeps the smallest probabilities from underflowing.
fn relative_likelihoods(probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Vec<f64> {
    let mut likelihoods = Vec::with_capacity(labels.len() * probabilities.len());
    for (image, &label) in labels.iter().enumerate() {
        let of_label = || probabilities.iter().map(|answers| answers[image][label]);
        let highest = of_label().fold(0.0, f64::max);
        // A label that all models rule out says nothing about their weights.
        likelihoods.extend(of_label().map(|one| if highest > 0.0 { one / highest } else { 1.0 }));
    }
    likelihoods
}

/// Returns weights in proportion to `counts`, with those that are too low raised to the minimum: of all
/// allowed weights those with the highest sum of count x ln(weight).
fn shares(counts: &[f64]) -> Vec<f64> {
    let min = weight_min(counts.len());
    let mut ascending = counts.to_vec();
    ascending.sort_by(f64::total_cmp);
    let mut share_left = 1.0;
    let mut count_left: f64 = counts.iter().sum();
    // Raising one lowers those above it, so that the next one may be too low as well.
    for count in ascending {
        if count * share_left / count_left >= min {
            break;
        }
        share_left -= min;
        count_left -= count;
    }
    counts.iter().map(|count| (count * share_left / count_left).max(min)).collect()
}

/// Fits the weights of the logarithmic opinion pool with the lowest mean NLL of the renormalized weighted
/// mean of the models' log-probabilities (Genest and Zidek 1986, "Combining probability distributions").
/// Their sum is 1, and none is below [`WEIGHT_MIN`]. `None` if there are no models or no images.
///
/// `log_probabilities[model][image]` has one for each class, all finite. The prior costs `PRIOR_IMAGES` x the
/// sum of squared differences from equal weights, which is 1 for all weight on one of many models. The loss
/// is convex, and is minimized by projected gradients with the step lengths of Barzilai and Borwein (1988)
/// and a line search (Birgin, Martínez and Raydan 2000, "Nonmonotone spectral projected gradient methods on
/// convex sets"; here monotone).
///
/// # Panics
/// When a model does not have one answer for each label, or answers differ in their classes or lack their
/// label.
pub(crate) fn log_pool_weights(log_probabilities: &[Vec<&[f64]>], labels: &[usize]) -> Option<Vec<f64>> {
    let mut weights = equal_weights(log_probabilities, labels)?;
    let mut loss = LogPoolLoss::at(&weights, log_probabilities, labels);
    let curvature_min = LogPoolLoss::curvature_min(labels.len());
    // The first step moves the weight with the steepest slope by 1.
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
            let candidate_loss = LogPoolLoss::at(&candidate, log_probabilities, labels);
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

/// The mean NLL of the logarithmic opinion pool plus the cost of the prior, and its gradient.
struct LogPoolLoss {
    value: f64,
    gradient: Vec<f64>,
}

impl LogPoolLoss {
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

    /// Returns the second derivative of the prior's cost in any direction, a lower bound of that of the loss.
    fn curvature_min(images: usize) -> f64 {
        2.0 * PRIOR_IMAGES / images as f64
    }
}

/// Projects a point to the nearest weights with the sum 1 and none below the minimum (Duchi et al. 2008,
/// "Efficient projections onto the l1-ball").
fn projected(point: &[f64]) -> Vec<f64> {
    let min = weight_min(point.len());
    let to_distribute = 1.0 - min * point.len() as f64;
    let mut descending = point.to_vec();
    descending.sort_by(|left, right| right.total_cmp(left));
    // Relative to the largest, so that rounding does not matter if all are far away.
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

/// Returns an upper bound of the decrease of the loss by other weights: a convex function lies above its
/// tangents, and a tangent is lowest where all weight that can be distributed is on the model with the lowest
/// slope (Frank and Wolfe 1956).
fn gain_max(weights: &[f64], gradient: &[f64]) -> f64 {
    let min = weight_min(weights.len());
    let lowest = gradient.iter().copied().fold(f64::INFINITY, f64::min);
    weights.iter().zip(gradient).map(|(weight, slope)| (weight - min) * (slope - lowest)).sum()
}

/// Returns the least weight that each of `models` models may have.
fn weight_min(models: usize) -> f64 {
    WEIGHT_MIN.min(WEIGHT_MIN_OF_EQUAL_SHARE / models as f64)
}

/// Returns the weights that a fit starts from; `None` if there is nothing to fit.
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

/// Returns the fold, below `count`, of each image: whole groups, because images of one patient, slide or
/// video are nearly the same, and stratified by label.
///
/// The groups are assigned in turn, sorted by the label of their first image and within a label at random:
/// the number of groups of a label, and of all groups, then differs between folds by at most one. A fold is
/// empty if there are fewer groups than folds.
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
    let mut assigned: Vec<(usize, u64, usize)> = label_of_group
        .iter()
        .map(|(&group, &label)| (label, splitmix64(splitmix64(seed) ^ group as u64), group))
        .collect();
    assigned.sort_unstable();
    let fold_of_group: BTreeMap<usize, usize> =
        assigned.iter().enumerate().map(|(position, &(.., group))| (group, position % count)).collect();
    groups.iter().map(|group| fold_of_group[group]).collect()
}
