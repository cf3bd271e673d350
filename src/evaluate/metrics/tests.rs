use super::*;

const TOLERANCE: f64 = 1e-12;

#[track_caller]
fn assert_close(found: f64, wanted: f64, what: &str) {
    assert!((found - wanted).abs() < TOLERANCE, "{what}: {found}, not {wanted}");
}

/// Returns predictions with all probability on one class.
fn certain(predicted: &[usize], classes: usize) -> Vec<Vec<f64>> {
    let one_hot =
        |&answer: &usize| (0..classes).map(|class| if class == answer { 1.0 } else { 0.0 }).collect();
    predicted.iter().map(one_hot).collect()
}

fn predictions<'a>(probabilities: &'a [Vec<f64>], labels: &[usize]) -> Vec<Prediction<'a>> {
    let pairs = probabilities.iter().zip(labels);
    pairs.map(|(probabilities, &label)| Prediction { probabilities, label }).collect()
}

fn ungrouped(images: usize) -> Bootstrap {
    Bootstrap::new(&(0..images).collect::<Vec<_>>(), 200, 1)
}

fn metrics(probabilities: &[Vec<f64>], labels: &[usize]) -> ClassificationMetrics {
    let classes = probabilities[0].len();
    measure(&predictions(probabilities, labels), classes, &ungrouped(labels.len())).unwrap()
}

#[test]
fn figures_of_two_classes_as_computed_by_hand() {
    let probabilities = [vec![0.9, 0.1], vec![0.4, 0.6], vec![0.6, 0.4], vec![0.2, 0.8]];
    // Answers 0, 1, 0, 1: right, wrong, wrong, right.
    let found = metrics(&probabilities, &[0, 0, 1, 1]);
    assert_close(found.accuracy.value, 0.5, "accuracy");
    assert_close(found.balanced_accuracy.value, 0.5, "balanced accuracy, (1/2 + 1/2) / 2");
    assert_close(found.mcc.value, 0.0, "mcc, 4 * 2 - (2 * 2 + 2 * 2) = 0");
    assert_close(found.f1.value, 0.5, "f1, 2 * 1 / (2 * 1 + 1 + 1)");
    // 0.4 > 0.1, 0.4 < 0.6, 0.8 > 0.1, 0.8 > 0.6.
    assert_close(found.auroc.unwrap().value, 0.75, "auroc, 3 of 4 pairs");
    let log_loss = -(0.9_f64.ln() + 0.4_f64.ln() + 0.4_f64.ln() + 0.8_f64.ln()) / 4.0;
    assert_close(found.nll.value, log_loss, "nll");
    // 2 * (0.1^2 + 0.6^2 + 0.6^2 + 0.2^2) / 4
    assert_close(found.brier.value, 0.385, "brier");
    // Bins of 0.9, of 0.8 and of 0.6 twice: (|1 - 0.9| + |1 - 0.8| + |0 - 1.2|) / 4
    assert_close(found.ece.value, 0.375, "ece");
    // Right at 0.9 and 0.8, both wrong at 0.6: (0/1 + 0/2 + 1/3 + 2/4) / 4 = 5/24
    assert_close(found.aurc.value, 5.0 / 24.0, "aurc");
    let (class, recall) = found.worst_class.unwrap();
    assert_eq!((class, recall.value), (0, 0.5), "the first of equally bad classes");
}

#[test]
fn figures_of_three_classes_as_computed_by_hand() {
    let probabilities = [
        vec![0.5, 0.3, 0.2],
        vec![0.2, 0.7, 0.1],
        vec![0.3, 0.6, 0.1],
        vec![0.1, 0.2, 0.7],
        vec![0.4, 0.4, 0.2],
    ];
    // Answers 0, 1, 1, 2, 0 (the first of two at 0.4): right, wrong, right, right, wrong.
    let found = metrics(&probabilities, &[0, 0, 1, 2, 2]);
    assert_close(found.accuracy.value, 0.6, "accuracy");
    assert_close(found.balanced_accuracy.value, 2.0 / 3.0, "balanced accuracy, (1/2 + 1 + 1/2) / 3");
    // t = 2, 1, 2; p = 2, 2, 1: (5 * 3 - (4 + 2 + 2)) / sqrt((25 - 9) (25 - 9))
    assert_close(found.mcc.value, 7.0 / 16.0, "mcc");
    // 2 * 1 / (2 + 2), 2 * 1 / (1 + 2), 2 * 1 / (2 + 1)
    assert_close(found.f1.value, (1.0 / 2.0 + 2.0 / 3.0 + 2.0 / 3.0) / 3.0, "f1");
    // Class 0: 0.5, 0.2 over 0.3, 0.1, 0.4: 3 + 1 of 6. Class 1: 0.6 over 0.3, 0.7, 0.2, 0.4: 3 of 4.
    // Class 2: 0.7, 0.2 over 0.2, 0.1, 0.1: 3 + 2.5 of 6.
    let auroc = (4.0 / 6.0 + 3.0 / 4.0 + 5.5 / 6.0) / 3.0;
    assert_close(found.auroc.unwrap().value, auroc, "auroc");
    // 0.25 + 0.09 + 0.04; 0.64 + 0.49 + 0.01; 0.09 + 0.16 + 0.01; 0.01 + 0.04 + 0.09; 0.16 + 0.16 + 0.64
    assert_close(found.brier.value, (0.38 + 1.14 + 0.26 + 0.14 + 0.96) / 5.0, "brier");
    // Right and wrong at 0.7, then right at 0.6, right at 0.5, wrong at 0.4: the tie counts as half wrong
    // each.
    let risks = 0.5 / 1.0 + 1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0 + 2.0 / 5.0;
    assert_close(found.aurc.value, risks / 5.0, "aurc");
    assert_eq!(found.worst_class.map(|(class, recall)| (class, recall.value)), Some((0, 0.5)));
}

#[test]
fn correlation_of_many_classes() {
    struct Case {
        name: &'static str,
        labels: &'static [usize],
        predicted: &'static [usize],
        wanted: f64,
    }
    // The first three are scikit-learn's, from its tests of `matthews_corrcoef`.
    let cases = [
        Case { name: "all right", labels: &[0, 0, 1, 1, 2, 2], predicted: &[0, 0, 1, 1, 2, 2], wanted: 1.0 },
        // (6 * 0 - (4 + 4 + 4)) / (36 - 12)
        Case { name: "all wrong", labels: &[0, 0, 1, 1, 2, 2], predicted: &[2, 2, 0, 0, 1, 1], wanted: -0.5 },
        // (6 * 0 - (8 + 4 + 0)) / sqrt((36 - 20) (36 - 12))
        Case {
            name: "all wrong, uneven",
            labels: &[0, 0, 1, 1, 2, 2],
            predicted: &[1, 1, 0, 0, 0, 0],
            wanted: -12.0 / 384.0_f64.sqrt(),
        },
        // TP 1, TN 2, FP 1, FN 1: (2 - 1) / sqrt(2 * 2 * 3 * 3)
        Case {
            name: "two classes",
            labels: &[0, 0, 0, 1, 1],
            predicted: &[0, 0, 1, 0, 1],
            wanted: 1.0 / 6.0,
        },
        Case { name: "constant", labels: &[0, 1, 2], predicted: &[1, 1, 1], wanted: 0.0 },
        Case { name: "only one class occurs", labels: &[1, 1, 1], predicted: &[0, 1, 2], wanted: 0.0 },
    ];
    for case in cases {
        let classes = case.labels.iter().chain(case.predicted).max().unwrap() + 1;
        let found = metrics(&certain(case.predicted, classes), case.labels);
        assert_close(found.mcc.value, case.wanted, case.name);
        assert!(found.mcc.low.is_finite() && found.mcc.high.is_finite(), "{}", case.name);
    }
}

#[test]
fn perfect_inverted_and_constant_answers() {
    let labels = [0, 1, 0, 1, 1];

    let perfect = metrics(&certain(&labels, 2), &labels);
    let one = Estimate { value: 1.0, low: 1.0, high: 1.0 };
    assert_eq!([perfect.accuracy, perfect.balanced_accuracy, perfect.mcc, perfect.f1], [one; 4]);
    assert_eq!((perfect.auroc, perfect.worst_class), (Some(one), Some((0, one))));
    assert_eq!([perfect.brier, perfect.ece, perfect.aurc, perfect.nll].map(|figure| figure.value), [0.0; 4]);

    let inverted = metrics(&certain(&[1, 0, 1, 0, 0], 2), &labels);
    let of_inverted = [inverted.accuracy, inverted.f1, inverted.auroc.unwrap()].map(|figure| figure.value);
    assert_eq!(of_inverted, [0.0; 3]);
    assert_close(inverted.mcc.value, -1.0, "mcc");
    assert_close(inverted.nll.value, 12.0 * 10.0_f64.ln(), "nll at its limit");
    assert_eq!([inverted.brier, inverted.ece, inverted.aurc].map(|figure| figure.value), [2.0, 1.0, 1.0]);

    let constant = metrics(&vec![vec![0.5, 0.5]; 5], &labels);
    assert_close(constant.accuracy.value, 0.4, "always class 0, the first of equal ones");
    assert_eq!([constant.balanced_accuracy, constant.auroc.unwrap()].map(|figure| figure.value), [0.5; 2]);
    assert_eq!([constant.mcc, constant.f1].map(|figure| figure.value), [0.0; 2]);
    assert_close(constant.aurc.value, 0.6, "the error rate at every coverage");
    assert_close(constant.ece.value, 0.1, "|0.4 - 0.5|");
    assert_eq!(constant.worst_class.map(|(class, recall)| (class, recall.value)), Some((1, 0.0)));
}

#[test]
fn classes_that_do_not_occur_are_left_out() {
    // Class 1 never occurs, and is predicted once.
    let probabilities = [vec![0.8, 0.1, 0.1], vec![0.3, 0.6, 0.1], vec![0.1, 0.2, 0.7]];
    let found = metrics(&probabilities, &[0, 0, 2]);
    assert_close(found.balanced_accuracy.value, 0.75, "(1/2 + 1) / 2");
    assert_close(found.f1.value, (2.0 / 3.0 + 1.0) / 2.0, "f1, 2 / (2 + 1) and 2 / (1 + 1)");
    assert_close(found.auroc.unwrap().value, 1.0, "auroc of classes 0 and 2");
    assert_eq!(found.worst_class.unwrap().0, 0);

    let only_class_0 = metrics(&[vec![0.8, 0.2], vec![0.6, 0.4]], &[0, 0]);
    assert_eq!(only_class_0.auroc, None);
    assert_eq!([only_class_0.f1, only_class_0.mcc], [Estimate::ZERO; 2]);
    assert_eq!(only_class_0.worst_class, Some((0, Estimate { value: 1.0, low: 1.0, high: 1.0 })));
}

#[test]
fn a_rare_class_that_a_resample_lacks_does_not_lower_its_figures() {
    let labels = [1, 0, 0, 0, 0, 0];
    let found = metrics(&certain(&labels, 2), &labels);
    let (_, recall) = found.worst_class.unwrap();
    for (name, figure) in [("f1", found.f1), ("mcc", found.mcc), ("recall", recall)] {
        assert_eq!((figure.low, figure.high), (1.0, 1.0), "{name}");
    }
}

#[test]
fn calibrated_bins_have_no_calibration_error() {
    // In each bin of ten predictions, the accuracy equals the confidence.
    let (mut probabilities, mut labels) = (Vec::new(), Vec::new());
    for right in [6, 7, 8, 9, 10] {
        let confidence = f64::from(right) / 10.0;
        probabilities.extend(vec![vec![confidence, 1.0 - confidence]; 10]);
        labels.extend((0..10).map(|answer| usize::from(answer >= right)));
    }
    assert_close(metrics(&probabilities, &labels).ece.value, 0.0, "calibrated");
    // All right: the gaps are 0.4, 0.3, 0.2, 0.1 and 0.
    assert_close(metrics(&probabilities, &[0; 50]).ece.value, 0.2, "too modest");
}

#[test]
fn calibration_bins_hold_their_upper_edges() {
    let cases = [(0.0, 0), (0.01, 0), (1.0 / 15.0, 0), (0.07, 1), (0.2, 2), (0.5, 7), (0.94, 14), (1.0, 14)];
    for (confidence, bin) in cases {
        assert_eq!(calibration_bin(confidence), bin, "{confidence}");
    }
    assert_eq!(calibration_bin(1.0 + 1e-9), 14, "a sum that rounding left above 1");
}

#[test]
fn scores_that_predict() {
    struct Case {
        name: &'static str,
        scores: &'static [f64],
        is_positive: &'static [bool],
        weights: &'static [u16],
        wanted: Option<f64>,
    }
    let cases = [
        Case {
            name: "one of two pairs in order, one tied",
            scores: &[0.3, 0.3, 0.1],
            is_positive: &[true, false, false],
            weights: &[1, 1, 1],
            wanted: Some(0.75),
        },
        Case {
            name: "the tied pair three times",
            scores: &[0.3, 0.3, 0.1],
            is_positive: &[true, false, false],
            weights: &[1, 3, 1],
            wanted: Some(2.5 / 4.0),
        },
        Case {
            name: "minus zero is zero",
            scores: &[-0.0, 0.0],
            is_positive: &[true, false],
            weights: &[1, 1],
            wanted: Some(0.5),
        },
        Case {
            name: "the only negative is not drawn",
            scores: &[0.3, 0.2],
            is_positive: &[true, false],
            weights: &[2, 0],
            wanted: None,
        },
        Case { name: "nothing", scores: &[], is_positive: &[], weights: &[], wanted: None },
    ];
    for case in cases {
        let ranking = Ranking::new(case.scores.iter().copied().zip(case.is_positive.iter().copied()));
        assert_eq!(ranking.auroc(case.weights), case.wanted, "{}", case.name);
    }
}

/// Returns predictions for `images` images that are right about two times in three, with many equal
/// confidences.
fn made_up(images: usize, classes: usize) -> (Vec<Vec<f64>>, Vec<usize>) {
    let mut state = 0_usize;
    let mut draw = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let (mut probabilities, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..images {
        let mut parts: Vec<f64> = (0..classes).map(|_| (1 + draw(4)) as f64).collect();
        let label = draw(classes);
        parts[if draw(3) < 2 { label } else { draw(classes) }] += 4.0;
        let sum: f64 = parts.iter().sum();
        probabilities.push(parts.iter().map(|part| part / sum).collect());
        labels.push(label);
    }
    (probabilities, labels)
}

#[test]
fn a_weight_counts_an_image_so_many_times() {
    for classes in [2, 5] {
        let (probabilities, labels) = made_up(60, classes);
        let answers = predictions(&probabilities, &labels);
        let weights: Vec<u16> = (0..60).map(|image| (image * 7 % 4) as u16).collect();
        let repeated: Vec<Prediction<'_>> = answers
            .iter()
            .zip(&weights)
            .flat_map(|(answer, &weight)| std::iter::repeat_n(*answer, usize::from(weight)))
            .collect();

        let weighted = Prepared::new(&answers, classes).values(&weights);
        let plain = Prepared::new(&repeated, classes).values(&vec![1; repeated.len()]);
        let all = |values: &Values| {
            let certain = [values.accuracy, values.balanced_accuracy, values.nll, values.brier, values.ece];
            let others = [values.aurc, values.mcc.unwrap(), values.f1.unwrap(), values.auroc.unwrap()];
            [certain.as_slice(), &others].concat()
        };
        for (figure, (found, wanted)) in all(&weighted).into_iter().zip(all(&plain)).enumerate() {
            assert_close(found, wanted, &format!("figure {figure} of {classes} classes"));
        }
    }
}

#[test]
fn an_order_of_images_does_not_matter() {
    let (mut probabilities, mut labels) = made_up(80, 3);
    let forwards = metrics(&probabilities, &labels);
    probabilities.reverse();
    labels.reverse();
    let backwards = metrics(&probabilities, &labels);
    assert_close(forwards.aurc.value, backwards.aurc.value, "aurc");
    assert_close(forwards.auroc.unwrap().value, backwards.auroc.unwrap().value, "auroc");
}

#[test]
fn intervals_hold_the_value_and_groups_widen_them() {
    // 100 predictions, each for an image that is 10 times in the data.
    let (probabilities, labels) = made_up(100, 3);
    let distinct = predictions(&probabilities, &labels);
    let repeated: Vec<Prediction<'_>> = (0..1000).map(|image| distinct[image / 10]).collect();
    let measured_in = |groups: Vec<usize>| measure(&repeated, 3, &Bootstrap::new(&groups, 500, 9)).unwrap();
    let grouped = measured_in((0..1000).map(|image| image / 10).collect());
    let ungrouped = measured_in((0..1000).collect());

    let of = |found: &ClassificationMetrics| {
        [found.accuracy, found.mcc, found.f1, found.auroc.unwrap(), found.nll, found.brier]
    };
    for (grouped, ungrouped) in of(&grouped).into_iter().zip(of(&ungrouped)) {
        assert_eq!(grouped.value, ungrouped.value);
        for Estimate { value, low, high } in [grouped, ungrouped] {
            assert!(low < value && value < high, "{value} in {low} to {high}");
        }
        // In theory sqrt(10) = 3.2 times as wide.
        let ratio = (grouped.high - grouped.low) / (ungrouped.high - ungrouped.low);
        assert!((2.5..4.0).contains(&ratio), "{ratio} times as wide");
    }
}

#[test]
fn no_predictions_have_no_metrics() {
    assert_eq!(measure(&[], 2, &ungrouped(0)), None);
}

/// Run with `cargo test --release -- --ignored --nocapture`.
#[test]
#[ignore = "measures time"]
fn many_classes_take_seconds() {
    let (probabilities, labels) = made_up(6315, 43);
    let answers = predictions(&probabilities, &labels);
    let bootstrap = Bootstrap::new(&(0..6315).collect::<Vec<_>>(), 1000, 1);
    let begun = std::time::Instant::now();
    let found = measure(&answers, 43, &bootstrap).unwrap();
    println!("{:?} for {found:?}", begun.elapsed());
}
