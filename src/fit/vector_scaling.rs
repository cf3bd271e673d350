//! Fits vector scaling: a scale and a bias for each label, on top of a temperature.

use std::collections::VecDeque;

use concord_policy::VectorScaling;

use super::solve::{
    DESCENT_SHARE, HALVINGS_MAX, MEAN_NLL_TOLERANCE, PRIOR_IMAGES, check_image_count, dot, moved,
};

#[cfg(test)]
mod tests;

/// The largest number of steps. Each is one pass over images x labels, seldom two. For the test photographs
/// (6,315, 43 labels) of four models, each fitted six times, `concord fit` takes 14 s of one core in total.
const STEPS_MAX: u32 = 300;

/// The number of past steps that approximate the curvature (Nocedal 1980 has 3 to 7).
const REMEMBERED: usize = 8;

/// Fits the vector scaling with the lowest mean NLL to a model's log-probabilities, whose best temperature is
/// `temperature`; `None` if there are no images.
///
/// The fit starts from that temperature (the scales 1 / T, no biases), and a prior draws towards it:
/// `PRIOR_IMAGES` times the sum of all (ln (T scale))^2 and bias^2, as though it were known beforehand of
/// each label that its scale and its odds are, with 95 % certainty, between 1/4 and 4 times those of the
/// temperature. So a label with few images stays close to the temperature. The parameters are the logarithms
/// of the scales, which keeps these above 0.
///
/// The optimizer is L-BFGS (Nocedal 1980, "Updating quasi-Newton matrices with limited storage"). No step
/// increases the loss, so that the result is no worse on these images than the temperature.
///
/// # Panics
/// When there is not one label for each image, or an image has other labels than the first.
pub(crate) fn vector_scaling(
    log_probabilities: &[Vec<f64>],
    labels: &[usize],
    temperature: f64,
) -> Option<VectorScaling> {
    check_image_count(log_probabilities.len(), labels);
    let count = log_probabilities.first()?.len();
    let images = Images { log_probabilities, labels, temperature };
    let mut place = vec![0.0; 2 * count];
    let mut loss = images.loss(&place);
    let curvature_min = 2.0 * PRIOR_IMAGES / labels.len() as f64;
    let mut memory = Memory::default();
    for _ in 0..STEPS_MAX {
        // The largest possible gain, if the loss has only the curvature of the prior.
        if dot(&loss.gradient, &loss.gradient) / (2.0 * curvature_min) < MEAN_NLL_TOLERANCE {
            break;
        }
        let mut direction = memory.direction(&loss.gradient);
        if dot(&direction, &loss.gradient) >= 0.0 {
            // Where the loss is not convex, the remembered curvature may lead upwards.
            memory = Memory::default();
            direction = memory.direction(&loss.gradient);
        }
        let promised = -dot(&direction, &loss.gradient);
        let step_lengths = (0..HALVINGS_MAX).map(|halvings| 0.5_f64.powi(halvings));
        let mut steps = step_lengths.map(|length| {
            let candidate = moved(&place, &direction, length);
            let candidate_loss = images.loss(&candidate);
            (length, candidate, candidate_loss)
        });
        let found = steps
            .find(|(length, _, candidate)| candidate.value <= loss.value - DESCENT_SHARE * length * promised);
        let Some((_, next_place, next_loss)) = found else { break };
        memory.learn(moved(&next_place, &place, -1.0), moved(&next_loss.gradient, &loss.gradient, -1.0));
        (place, loss) = (next_place, next_loss);
    }
    let (ln_scales, bias) = place.split_at(count);
    VectorScaling::new(scales(ln_scales, temperature), bias.to_vec())
}

fn scales(ln_scales: &[f64], temperature: f64) -> Vec<f64> {
    ln_scales.iter().map(|ln_scale| ln_scale.exp() / temperature).collect()
}

/// The data of a fit.
struct Images<'a> {
    log_probabilities: &'a [Vec<f64>],
    labels: &'a [usize],
    temperature: f64,
}

/// The mean NLL plus the cost of the prior, and its gradient.
struct Loss {
    value: f64,
    gradient: Vec<f64>,
}

impl Images<'_> {
    /// Computes the loss at `place`: the logarithms of the scales, in units of 1 / T, followed by the biases.
    fn loss(&self, place: &[f64]) -> Loss {
        let (ln_scales, biases) = place.split_at(place.len() / 2);
        let scales = scales(ln_scales, self.temperature);
        let mut nll = 0.0;
        let mut gradient = vec![0.0; place.len()];
        let (by_ln_scale, by_bias) = gradient.split_at_mut(place.len() / 2);
        let mut probabilities = vec![0.0; scales.len()];
        for (logarithms, &label) in self.log_probabilities.iter().zip(self.labels) {
            assert_eq!(logarithms.len(), scales.len(), "the same labels for every image");
            for (index, logarithm) in logarithms.iter().enumerate() {
                probabilities[index] = scales[index] * logarithm + biases[index];
            }
            let of_label = probabilities[label];
            let largest = probabilities.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            for value in &mut probabilities {
                *value = (*value - largest).exp();
            }
            let sum: f64 = probabilities.iter().sum();
            nll += sum.ln() + largest - of_label;
            for (index, logarithm) in logarithms.iter().enumerate() {
                let truth = if index == label { 1.0 } else { 0.0 };
                let excess = probabilities[index] / sum - truth;
                by_bias[index] += excess;
                by_ln_scale[index] += excess * scales[index] * logarithm;
            }
        }
        let images = self.labels.len() as f64;
        for (slope, value) in gradient.iter_mut().zip(place) {
            *slope = (*slope + 2.0 * PRIOR_IMAGES * value) / images;
        }
        Loss { value: (nll + PRIOR_IMAGES * dot(place, place)) / images, gradient }
    }
}

/// The last steps and the changes of the gradient, which approximate the curvature of the loss.
#[derive(Default)]
struct Memory(VecDeque<Step>);

struct Step {
    step: Vec<f64>,
    gradient_change: Vec<f64>,
    /// The product of the two, greater than 0.
    product: f64,
}

impl Memory {
    /// Remembers a step, if the loss is convex along it.
    fn learn(&mut self, step: Vec<f64>, gradient_change: Vec<f64>) {
        let product = dot(&step, &gradient_change);
        if product > 0.0 {
            self.0.push_back(Step { step, gradient_change, product });
        }
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }

    /// Returns the step to the approximate minimum, by the two loops of Nocedal 1980. The first step is so
    /// long that the parameter with the steepest slope moves by 1.
    fn direction(&self, gradient: &[f64]) -> Vec<f64> {
        let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
        let mut shares = Vec::with_capacity(self.0.len());
        for Step { step, gradient_change, product } in self.0.iter().rev() {
            let share = dot(step, &direction) / product;
            direction = moved(&direction, gradient_change, -share);
            shares.push(share);
        }
        let steepest = gradient.iter().map(|slope| slope.abs()).fold(f64::MIN_POSITIVE, f64::max);
        let length = self
            .0
            .back()
            .map_or(1.0 / steepest, |last| last.product / dot(&last.gradient_change, &last.gradient_change));
        direction.iter_mut().for_each(|value| *value *= length);
        for (Step { step, gradient_change, product }, share) in self.0.iter().zip(shares.into_iter().rev()) {
            let already = dot(gradient_change, &direction) / product;
            direction = moved(&direction, step, share - already);
        }
        direction
    }
}
