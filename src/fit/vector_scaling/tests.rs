use super::super::solve::temperature;
use super::super::solve::tests::Random;
use super::*;

const LABELS: usize = 5;
/// The label that the model of these tests overestimates.
const FAVOURED: usize = 2;

/// Returns a model's log-probabilities, and labels drawn from them, before `excess` is added to one label.
fn images(count: usize, excess: f64, seed: u64) -> (Vec<Vec<f64>>, Vec<usize>) {
    let mut random = Random::new(seed);
    let mut of_images = Vec::new();
    let mut labels = Vec::new();
    for _ in 0..count {
        // Between a guess and near certainty.
        let mut logits: Vec<f64> = (0..LABELS).map(|_| 8.0 * random.share()).collect();
        let mut left = random.share();
        let drawn = softmax(&logits).iter().position(|probability| {
            left -= probability;
            left < 0.0
        });
        labels.push(drawn.unwrap_or(LABELS - 1));
        logits[FAVOURED] += excess;
        of_images.push(softmax(&logits).iter().map(|probability| probability.ln()).collect());
    }
    (of_images, labels)
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

/// Returns the temperature that is fitted to these log-probabilities.
fn best_temperature(images: &[Vec<f64>], labels: &[usize]) -> f64 {
    let logits: Vec<Vec<f32>> =
        images.iter().map(|image| image.iter().map(|logarithm| *logarithm as f32).collect()).collect();
    temperature(&logits.iter().map(Vec::as_slice).collect::<Vec<_>>(), labels).unwrap()
}

fn fitted(images: &[Vec<f64>], labels: &[usize]) -> (f64, VectorScaling) {
    let temperature = best_temperature(images, labels);
    (temperature, vector_scaling(images, labels, temperature).unwrap())
}

fn mean_nll(images: &[Vec<f64>], labels: &[usize], scaling: &VectorScaling) -> f64 {
    let nll = |(image, &label): (&Vec<f64>, &usize)| {
        let scaled = image.iter().zip(scaling.scale()).zip(scaling.bias());
        let scaled: Vec<f64> = scaled.map(|((logarithm, scale), bias)| logarithm * scale + bias).collect();
        -softmax(&scaled)[label].ln()
    };
    images.iter().zip(labels).map(nll).sum::<f64>() / labels.len() as f64
}

fn by_temperature(images: &[Vec<f64>], temperature: f64) -> VectorScaling {
    let labels = images[0].len();
    VectorScaling::new(vec![1.0 / temperature; labels], vec![0.0; labels]).unwrap()
}

#[test]
fn a_label_that_a_model_is_too_fond_of_is_found() {
    let (seen, labels) = images(4000, 2.0, 1);
    let (temperature, scaling) = fitted(&seen, &labels);
    let bias = scaling.bias();
    for other in (0..LABELS).filter(|label| *label != FAVOURED) {
        let excess = bias[other] - bias[FAVOURED];
        assert!((1.5..2.5).contains(&excess), "{excess} instead of 2: {scaling:?}");
    }
    // It also helps on other images, where a temperature cannot.
    let (unseen, labels) = images(4000, 2.0, 2);
    let (truth, truth_labels) = images(4000, 0.0, 2);
    let least = mean_nll(&truth, &truth_labels, &by_temperature(&truth, 1.0));
    let by_temperature = mean_nll(&unseen, &labels, &by_temperature(&unseen, temperature));
    let by_vector = mean_nll(&unseen, &labels, &scaling);
    assert!(
        by_vector < least + 0.005 && by_temperature > least + 0.1,
        "{least} {by_vector} {by_temperature}"
    );
}

#[test]
fn a_well_calibrated_model_is_left_about_as_it_is() {
    let (seen, labels) = images(4000, 0.0, 3);
    let (temperature, scaling) = fitted(&seen, &labels);
    assert!((temperature - 1.0).abs() < 0.05, "{temperature}");
    for (scale, bias) in scaling.scale().iter().zip(scaling.bias()) {
        assert!((scale - 1.0).abs() < 0.15 && bias.abs() < 0.3, "{scaling:?}");
    }
}

#[test]
fn few_images_give_no_extremes() {
    // Some labels have no image, or one image with or without an error.
    for count in 1..12 {
        for (excess, seed) in [(0.0, 4), (3.0, 5)] {
            let (seen, labels) = images(count, excess, seed);
            let (temperature, scaling) = fitted(&seen, &labels);
            for (scale, bias) in scaling.scale().iter().zip(scaling.bias()) {
                let factor = scale * temperature;
                assert!((0.2..5.0).contains(&factor) && bias.abs() < 2.0, "{count} images: {scaling:?}");
            }
        }
    }
    // A label that no image has stays near the temperature, however many there are of others.
    let (seen, labels): (Vec<Vec<f64>>, Vec<usize>) = (0..2000)
        .map(|index| {
            let logits: Vec<f64> =
                (0..LABELS).map(|label| if label == index % 2 { 6.0 } else { 0.0 }).collect();
            (softmax(&logits).iter().map(|probability| probability.ln()).collect(), index % 2)
        })
        .unzip();
    let (temperature, scaling) = fitted(&seen, &labels);
    for (scale, bias) in scaling.scale().iter().zip(scaling.bias()) {
        assert!((0.2..5.0).contains(&(scale * temperature)) && bias.abs() < 2.0, "{scaling:?}");
    }
}

#[test]
fn vector_scaling_is_deterministic_and_never_worse_than_the_temperature() {
    for (count, excess, factor) in [(3, 1.0, 1.0), (50, -4.0, 0.05), (500, 0.5, 20.0), (500, 30.0, 1.0)] {
        let (mut seen, labels) = images(count, excess, 6);
        seen.iter_mut().flatten().for_each(|logarithm| *logarithm *= factor);
        let (temperature, scaling) = fitted(&seen, &labels);
        let before = mean_nll(&seen, &labels, &by_temperature(&seen, temperature));
        let after = mean_nll(&seen, &labels, &scaling);
        assert!(after <= before + 1e-9, "{count} {excess} {factor}: {after} after {before}");
        assert_eq!(vector_scaling(&seen, &labels, temperature), Some(scaling));
    }
    assert_eq!(vector_scaling(&[], &[], 1.0), None);
}

#[test]
fn the_gradient_is_that_of_the_loss() {
    let (seen, labels) = images(30, 1.0, 7);
    let problem = Images { log_probabilities: &seen, labels: &labels, temperature: 1.5 };
    let place: Vec<f64> = (0..2 * LABELS).map(|index| 0.1 * index as f64 - 0.4).collect();
    let gradient = problem.loss(&place).gradient;
    for index in 0..place.len() {
        const STEP: f64 = 1e-5;
        let at = |distance: f64| {
            let mut place = place.clone();
            place[index] += distance;
            problem.loss(&place).value
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!((slope - gradient[index]).abs() < 1e-7, "{index}: {} instead of {slope}", gradient[index]);
    }
}

#[test]
fn the_signs_are_fitted_within_the_largest_number_of_steps() {
    // As many images as the held-out signs, of 43 labels.
    let mut random = Random::new(8);
    let labels: Vec<usize> = (0..4000).map(|image| image % 43).collect();
    let of_image = |label: &usize| {
        let raised = |index: usize| if index == *label { 6.0 } else { 0.0 };
        let logits: Vec<f64> = (0..43).map(|index| raised(index) + 6.0 * random.share()).collect();
        softmax(&logits).iter().map(|probability| probability.ln()).collect()
    };
    let seen: Vec<Vec<f64>> = labels.iter().map(of_image).collect();
    let temperature = best_temperature(&seen, &labels);
    let scaling = vector_scaling(&seen, &labels, temperature).unwrap();
    let before = mean_nll(&seen, &labels, &by_temperature(&seen, temperature));
    assert!(mean_nll(&seen, &labels, &scaling) < before);
    // It has ended at the minimum, and not because it had no steps left.
    let problem = Images { log_probabilities: &seen, labels: &labels, temperature };
    let ln_scales = scaling.scale().iter().map(|scale| (scale * temperature).ln());
    let place: Vec<f64> = ln_scales.chain(scaling.bias().iter().copied()).collect();
    let gradient = problem.loss(&place).gradient;
    let largest_gain = dot(&gradient, &gradient) * labels.len() as f64 / (4.0 * PRIOR_IMAGES);
    assert!(largest_gain < MEAN_NLL_TOLERANCE, "{largest_gain}");
}
