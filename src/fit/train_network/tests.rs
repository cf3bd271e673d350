use super::*;

/// Returns examples of two inputs, the first of which shows which of two models is right, or whether an
/// answer is.
fn inputs() -> Vec<[f32; 2]> {
    (0..400_u16).map(|index| [if index % 2 == 0 { 3.0 } else { -1.0 }, f32::from(index % 7)]).collect()
}

fn examples(inputs: &[[f32; 2]]) -> Vec<Example<'_>> {
    inputs.iter().enumerate().map(|(index, input)| Example { input, validates: index % 5 == 0 }).collect()
}

/// Returns log-probabilities, [examples, models, 2 labels], from each model's probability of the first label.
fn log_probabilities(of_first: impl Iterator<Item = f32>) -> Vec<f32> {
    of_first.flat_map(|probability| [probability.ln(), (1.0 - probability).ln()]).collect()
}

fn fusion(network: &Network, input: [f32; 2]) -> ImageFusion {
    ImageFusion::new(network.forward(&input).unwrap())
}

#[test]
fn weights_follow_the_model_that_is_right() {
    let inputs = inputs();
    let who = |input: &[f32; 2]| if input[0] > 0.0 { [0.9, 0.4] } else { [0.3, 0.9] };
    let log_probabilities = log_probabilities(inputs.iter().flat_map(who));
    let truths = vec![0; inputs.len()];
    let objective = Objective::Fusion {
        log_probabilities: &log_probabilities,
        truths: &truths,
        fixed: &[0.5, 0.5],
        answers: &[2],
    };
    let network = train(&examples(&inputs), objective, Training::default()).unwrap();
    for (input, first_is_right) in [([3.0, 2.0], true), ([-1.0, 5.0], false)] {
        let found = fusion(&network, input);
        let [first, second] = [0, 1].map(|model| found.weight_logit(model).unwrap());
        assert_eq!(first > second + 1.0, first_is_right, "{found:?}");
        assert_eq!(first + 1.0 < second, !first_is_right, "{found:?}");
    }
    let again = train(&examples(&inputs), objective, Training::default()).unwrap();
    assert_eq!(again, network, "the same arguments");
}

#[test]
fn a_model_becomes_less_confident_where_it_is_seldom_right() {
    let inputs = inputs();
    let log_probabilities = log_probabilities(inputs.iter().map(|_| 0.9));
    // Right ten times of eleven if the first input is high, and every second time otherwise.
    let truth = |(index, input): (usize, &[f32; 2])| {
        usize::from(if input[0] > 0.0 { index % 22 == 0 } else { index % 4 == 1 })
    };
    let truths: Vec<usize> = inputs.iter().enumerate().map(truth).collect();
    let objective = Objective::Fusion {
        log_probabilities: &log_probabilities,
        truths: &truths,
        fixed: &[1.0],
        answers: &[1],
    };
    let network = train(&examples(&inputs), objective, Training::default()).unwrap();
    let inverse_temperature = |input| fusion(&network, input).inverse_temperature(0).unwrap();
    let (known, unknown) = (inverse_temperature([3.0, 3.0]), inverse_temperature([-1.0, 3.0]));
    assert!((0.7..1.4).contains(&known) && unknown < 0.3, "{known} {unknown}");
}

#[test]
fn a_correctness_estimator_says_how_likely_it_is() {
    let inputs = inputs();
    // Always right if the first input is high, and every second time otherwise.
    let is_right: Vec<bool> =
        inputs.iter().enumerate().map(|(index, input)| input[0] > 0.0 || index % 4 == 1).collect();
    let network = train(&examples(&inputs), Objective::Truth(&is_right), Training::default()).unwrap();
    let probability = |input: [f32; 2]| 1.0 / (1.0 + (-network.forward(&input).unwrap()[0]).exp());
    assert!(probability([3.0, 3.0]) > 0.9, "{}", probability([3.0, 3.0]));
    assert!((0.3..0.7).contains(&probability([-1.0, 3.0])), "{}", probability([-1.0, 3.0]));
}

#[test]
fn without_anything_to_learn_the_initial_network_is_kept() {
    let inputs = inputs();
    let log_probabilities = vec![0.5_f32.ln(); 4 * inputs.len()];
    let truths = vec![0; inputs.len()];
    let objective = Objective::Fusion {
        log_probabilities: &log_probabilities,
        truths: &truths,
        fixed: &[0.8, 0.2],
        answers: &[1, 2],
    };
    let network = train(&examples(&inputs), objective, Training::default()).unwrap();
    let outputs = network.forward(&[0.0, 0.0]).unwrap();
    assert!((outputs[0] - outputs[1] - (0.8_f32 / 0.2).ln()).abs() < 1e-4, "{outputs:?}");
    assert_eq!(outputs[2..], [0.0, 0.0], "as sure as they are");
    // These log-odds are already right, whatever the second input is.
    let inputs: Vec<[f32; 2]> = (0..400_u16)
        .map(|index| [if index % 2 == 0 { 9.0_f32.ln() } else { 0.0 }, f32::from(index % 7)])
        .collect();
    let is_right: Vec<bool> = (0..400).map(|index| index % 20 != 0 && index % 4 != 1).collect();
    let correctness =
        train(&examples(&inputs), Objective::Truth(&is_right), Training { epochs: 0, ..Training::default() });
    for input in [[2.5, 3.0], [-4.0, 100.0]] {
        let log_odds = correctness.as_ref().unwrap().forward(&input).unwrap()[0];
        assert!((log_odds - input[0]).abs() < 1e-4, "{log_odds} of {input:?}");
    }
}

#[test]
fn too_few_examples_are_an_error() {
    let inputs = inputs();
    let all = examples(&inputs);
    let training_rows: Vec<Example<'_>> = all.iter().filter(|example| !example.validates).copied().collect();
    for examples in [&all[..0], &all[..1], &training_rows] {
        let is_true = vec![true; examples.len()];
        let error = train(examples, Objective::Truth(&is_true), Training::default()).unwrap_err();
        assert!(error.to_string().contains("too few examples"), "{error}");
    }
}

#[test]
fn a_constant_input_is_not_scaled() {
    let inputs: Vec<[f32; 2]> = (0..400_u16).map(|index| [f32::from(index % 2), 7.0]).collect();
    let is_right: Vec<bool> = (0..400).map(|index| index % 2 == 0).collect();
    let network = train(&examples(&inputs), Objective::Truth(&is_right), Training::default()).unwrap();
    let [seen, unseen] = [7.0, 7.5].map(|second| network.forward(&[1.0, second]).unwrap()[0]);
    assert!(seen < 0.0 && (unseen - seen).abs() < 2.0, "{seen} {unseen}");
}

#[test]
fn values_that_are_not_finite_are_an_error() {
    let inputs = inputs();
    let log_probabilities = vec![f32::NAN; 2 * inputs.len()];
    let truths = vec![0; inputs.len()];
    let objective = Objective::Fusion {
        log_probabilities: &log_probabilities,
        truths: &truths,
        fixed: &[1.0],
        answers: &[1],
    };
    let error = train(&examples(&inputs), objective, Training::default()).unwrap_err();
    assert!(error.to_string().contains("not finite"), "{error}");
}

/// A feature as wide as that of ViT-L, of which one number in sixteen shows which model is right.
#[test]
fn a_feature_of_full_size_is_learned_from() {
    let chance = |index: usize, of: usize| ((index * 1024 + of) as f32 * 0.618_034).fract() - 0.5;
    let is_light = |index: usize| chance(index, 0) > 0.0;
    let feature = |index: usize| -> Vec<f32> {
        let sign = if is_light(index) { 0.5 } else { -0.5 };
        (0..1024).map(|of| if of % 16 == 0 { sign } else { chance(index, of) }).collect()
    };
    let features: Vec<Vec<f32>> = (0..500).map(feature).collect();
    let examples: Vec<Example<'_>> = features
        .iter()
        .enumerate()
        .map(|(index, input)| Example { input, validates: index % 5 == 0 })
        .collect();
    let who = |index: usize| if is_light(index) { [0.9, 0.4] } else { [0.3, 0.9] };
    let log_probabilities = log_probabilities((0..500).flat_map(who));
    let truths = vec![0; 500];
    let objective = Objective::Fusion {
        log_probabilities: &log_probabilities,
        truths: &truths,
        fixed: &[0.5, 0.5],
        answers: &[1, 2],
    };
    let network =
        train(&examples, objective, Training { hidden: 256, epochs: 20, ..Training::default() }).unwrap();
    let right = (1000..1100).filter(|&index| {
        let found = ImageFusion::new(network.forward(&feature(index)).unwrap());
        (found.weight_logit(0) > found.weight_logit(1)) == is_light(index)
    });
    assert!(right.count() > 95);
}
