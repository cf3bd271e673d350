use super::*;

/// A generator of numbers that are the same in every run.
pub(in crate::fit) struct Random {
    state: u64,
}

impl Random {
    pub(in crate::fit) fn new(seed: u64) -> Self {
        Self { state: splitmix64(seed) }
    }

    /// Returns a number between 0 and 1.
    pub(in crate::fit) fn share(&mut self) -> f64 {
        self.state = self.state.wrapping_add(1);
        (splitmix64(self.state) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a nearly normal number, with the mean 0 and the standard deviation 1.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }

    fn drawn(&mut self, probabilities: &[f64]) -> usize {
        let mut left = self.share();
        for (class, probability) in probabilities.iter().enumerate() {
            left -= probability;
            if left < 0.0 {
                return class;
            }
        }
        probabilities.len() - 1
    }

    /// Returns a uniform point of the simplex of weights, none of which is below the minimum.
    fn weights(&mut self, models: usize) -> Vec<f64> {
        let exponential: Vec<f64> = (0..models).map(|_| -(1.0 - self.share()).ln()).collect();
        let sum: f64 = exponential.iter().sum();
        let to_distribute = 1.0 - WEIGHT_MIN * models as f64;
        exponential.iter().map(|one| WEIGHT_MIN + to_distribute * one / sum).collect()
    }
}

fn softmax(values: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = values.iter().map(|value| (value - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

fn rows(of_images: &[Vec<f32>]) -> Vec<&[f32]> {
    of_images.iter().map(Vec::as_slice).collect()
}

/// Returns logits, and labels drawn from softmax(logits / `temperature`).
fn labelled_logits(images: usize, temperature: f64, seed: u64) -> (Vec<Vec<f32>>, Vec<usize>) {
    let mut random = Random::new(seed);
    let mut labels = Vec::new();
    let mut logits = Vec::new();
    for _ in 0..images {
        // Multiples of 1/64, so that a constant can be added without rounding.
        let calibrated: Vec<f64> = (0..5).map(|_| 2.0 * random.normal()).collect();
        let of_image: Vec<f32> =
            calibrated.iter().map(|value| ((value * temperature * 64.0).round() / 64.0) as f32).collect();
        let truth: Vec<f64> = of_image.iter().map(|&logit| f64::from(logit) / temperature).collect();
        labels.push(random.drawn(&softmax(&truth)));
        logits.push(of_image);
    }
    (logits, labels)
}

/// A model that answers labeled images.
#[derive(Debug, Clone, Copy)]
struct Skill {
    /// The margin of the true class's logit over the others.
    margin: f64,
    noise: f64,
}

const PERFECT: Skill = Skill { margin: 8.0, noise: 0.0 };
const USELESS: Skill = Skill { margin: 0.0, noise: 1.0 };

/// Returns each model's probabilities for each image.
struct Answers {
    probabilities: Vec<Vec<Vec<f64>>>,
    labels: Vec<usize>,
}

impl Answers {
    fn new(skills: &[Skill], images: usize, classes: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let labels: Vec<usize> = (0..images).map(|image| image % classes).collect();
        let mut answer = |skill: &Skill, label: usize| {
            let raised = |class| if class == label { skill.margin } else { 0.0 };
            let logits: Vec<f64> =
                (0..classes).map(|class| raised(class) + skill.noise * random.normal()).collect();
            softmax(&logits)
        };
        let mut of_model = |skill| labels.iter().map(|&label| answer(skill, label)).collect();
        let probabilities = skills.iter().map(&mut of_model).collect();
        Self { probabilities, labels }
    }

    fn with_model_repeated(mut self, model: usize) -> Self {
        self.probabilities.push(self.probabilities[model].clone());
        self
    }

    fn logarithms(&self) -> Vec<Vec<Vec<f64>>> {
        let of_image = |one: &Vec<f64>| one.iter().map(|probability| probability.ln().max(-708.0)).collect();
        self.probabilities.iter().map(|model| model.iter().map(of_image).collect()).collect()
    }
}

fn borrowed(answers: &[Vec<Vec<f64>>]) -> Vec<Vec<&[f64]>> {
    answers.iter().map(|model| model.iter().map(Vec::as_slice).collect()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Pool {
    Mixture,
    Product,
}

impl Pool {
    const ALL: [Self; 2] = [Self::Mixture, Self::Product];

    fn fit(self, answers: &Answers) -> Option<Vec<f64>> {
        match self {
            Self::Mixture => linear_pool_weights(&borrowed(&answers.probabilities), &answers.labels),
            Self::Product => log_pool_weights(&borrowed(&answers.logarithms()), &answers.labels),
        }
    }

    /// Returns the mean NLL of the fused answers.
    fn nll(self, answers: &Answers, weights: &[f64]) -> f64 {
        let fused_at_label = |(image, &label): (usize, &usize)| {
            let models = answers.probabilities.iter().zip(weights);
            match self {
                Self::Mixture => models.map(|(model, weight)| weight * model[image][label]).sum::<f64>(),
                Self::Product => {
                    let mut totals = vec![0.0; answers.probabilities[0][image].len()];
                    for (model, weight) in models {
                        for (total, probability) in totals.iter_mut().zip(&model[image]) {
                            *total += weight * probability.ln().max(-708.0);
                        }
                    }
                    softmax(&totals)[label]
                }
            }
        };
        let sum: f64 = answers.labels.iter().enumerate().map(fused_at_label).map(f64::ln).sum();
        -sum / answers.labels.len() as f64
    }

    /// Returns the objective of the fit: the NLL with the cost of the prior.
    fn loss(self, answers: &Answers, weights: &[f64]) -> f64 {
        let equal = 1.0 / weights.len() as f64;
        let cost: f64 = match self {
            Self::Mixture => weights.iter().map(|weight| -equal * weight.ln()).sum(),
            Self::Product => weights.iter().map(|weight| (weight - equal).powi(2)).sum(),
        };
        self.nll(answers, weights) + PRIOR_IMAGES * cost / answers.labels.len() as f64
    }
}

#[track_caller]
fn assert_valid(weights: &[f64], what: &str) {
    let sum: f64 = weights.iter().sum();
    assert!((sum - 1.0).abs() < 1e-12, "{what}: the sum of {weights:?} is {sum}");
    assert!(weights.iter().all(|&weight| weight > WEIGHT_MIN - 1e-12), "{what}: {weights:?}");
}

#[test]
fn a_known_temperature_is_recovered() {
    for wanted in [0.1, 0.4, 1.0, 2.5, 20.0] {
        let (logits, labels) = labelled_logits(4000, wanted, 1);
        let found = temperature(&rows(&logits), &labels).unwrap();
        // The standard error is about 0.02 of it.
        assert!((found / wanted).ln().abs() < 0.06, "{found}, not {wanted}");
    }
}

#[test]
fn the_temperature_shows_overconfidence() {
    let with_margin = |margin: f32| vec![vec![margin, 0.0]; 100];
    // 80 of 100 right: calibrated with a margin of ln 4 = 1.39.
    let labels: Vec<usize> = (0..100).map(|image| usize::from(image % 5 == 0)).collect();
    let overconfident = temperature(&rows(&with_margin(6.0)), &labels).unwrap();
    let underconfident = temperature(&rows(&with_margin(0.5)), &labels).unwrap();
    // Computed by hand without the prior, which draws it a little towards 1.
    assert!(overconfident > 3.7 && overconfident < 6.0 / 4.0_f64.ln(), "{overconfident}");
    assert!(underconfident > 0.5 / 4.0_f64.ln() && underconfident < 0.42, "{underconfident}");
}

#[test]
fn the_temperature_is_the_best_of_all() {
    for (images, true_temperature) in [(3, 0.3), (20, 3.0), (300, 0.05), (300, 30.0)] {
        let (logits, labels) = labelled_logits(images, true_temperature, 2);
        let loss = |candidate: f64| {
            let each = logits.iter().zip(&labels).map(|(logits, &label)| nll_at(logits, label, candidate));
            each.sum::<f64>() + PRIOR_IMAGES * candidate.ln().powi(2)
        };
        let found = temperature(&rows(&logits), &labels).unwrap();
        for step in 0..=2000 {
            let candidate = 0.01 * 10_000.0_f64.powf(f64::from(step) / 2000.0);
            assert!(loss(found) <= loss(candidate) + 1e-9, "{images} images: {candidate} beats {found}");
        }
    }
}

#[test]
fn without_errors_the_temperature_is_not_extreme() {
    struct Case {
        margin: f32,
        images: usize,
        from: f64,
        to: f64,
    }
    let cases = [
        Case { margin: 10.0, images: 3, from: 0.9, to: 1.0 },
        Case { margin: 10.0, images: 10_000, from: 0.5, to: 1.0 },
        Case { margin: 1.0, images: 100, from: 0.1, to: 0.5 },
        // Differences of similarities before they are scaled to logits.
        Case { margin: 0.1, images: 100, from: 0.02, to: 0.1 },
    ];
    for Case { margin, images, from, to } in cases {
        let found = temperature(&vec![&[margin, 0.0, 0.0][..]; images], &vec![0; images]).unwrap();
        assert!(found > from && found < to, "{images} images with the margin {margin}: {found}");
    }
}

#[test]
fn the_temperature_keeps_its_limits() {
    let all_right = temperature(&vec![&[1e-6, 0.0][..]; 1000], &[0; 1000]).unwrap();
    assert!((TEMPERATURE_MIN..1.0).contains(&all_right), "{all_right}");
    let all_wrong = temperature(&vec![&[f32::MAX, f32::MIN][..]; 1000], &[1; 1000]).unwrap();
    assert!(all_wrong > 99.99 && all_wrong <= TEMPERATURE_MAX, "{all_wrong}");
}

#[test]
fn losses_that_do_not_depend_on_the_temperature_leave_it_at_1() {
    let equal_logits = temperature(&[&[3.0, 3.0], &[-1.0, -1.0]], &[0, 1]).unwrap();
    let one_class = temperature(&[&[3.0], &[5.0]], &[0, 0]).unwrap();
    for found in [equal_logits, one_class] {
        assert!((found - 1.0).abs() < 1e-6, "{found}");
    }
    assert_eq!(temperature(&[], &[]), None);
}

#[test]
fn a_constant_in_the_logits_does_not_move_the_temperature() {
    let (logits, labels) = labelled_logits(500, 2.0, 3);
    let moved: Vec<Vec<f32>> =
        logits.iter().map(|logits| logits.iter().map(|logit| logit + 1024.0).collect()).collect();
    assert_eq!(temperature(&rows(&logits), &labels), temperature(&rows(&moved), &labels));
}

#[test]
fn a_perfect_model_gets_nearly_all_weight() {
    for pool in Pool::ALL {
        for (skills, best) in [
            (&[PERFECT, USELESS][..], 0),
            (&[USELESS, PERFECT], 1),
            (&[USELESS, USELESS, PERFECT, USELESS], 2),
        ] {
            let weights = pool.fit(&Answers::new(skills, 200, 4, 4)).unwrap();
            assert_valid(&weights, "a perfect model");
            assert!(weights[best] > 0.96, "{pool:?} with {best} perfect: {weights:?}");
        }
    }
}

#[test]
fn identical_models_get_equal_weights() {
    let skill = Skill { margin: 1.5, noise: 1.0 };
    for pool in Pool::ALL {
        let weights = pool.fit(&Answers::new(&[skill], 100, 3, 5).with_model_repeated(0)).unwrap();
        assert!((weights[0] - 0.5).abs() < 1e-9, "{pool:?}: {weights:?}");
        let weights = pool.fit(&Answers::new(&[skill, PERFECT], 100, 3, 6).with_model_repeated(0)).unwrap();
        assert!((weights[0] - weights[2]).abs() < 1e-9, "{pool:?}: {weights:?}");
    }
}

#[test]
fn no_other_weights_are_better() {
    let skill = |margin, noise| Skill { margin, noise };
    struct Case {
        name: &'static str,
        skills: Vec<Skill>,
        images: usize,
        classes: usize,
    }
    let cases = [
        Case {
            name: "alike",
            skills: vec![skill(2.0, 1.0), skill(2.0, 1.2), skill(1.8, 1.0)],
            images: 300,
            classes: 5,
        },
        Case {
            name: "one far better",
            skills: vec![skill(1.0, 1.0), skill(4.0, 1.0), skill(0.5, 2.0)],
            images: 300,
            classes: 5,
        },
        Case {
            name: "overconfident",
            skills: vec![skill(200.0, 300.0), skill(600.0, 400.0), USELESS],
            images: 200,
            classes: 3,
        },
        Case { name: "few images", skills: vec![skill(2.0, 2.0), skill(2.0, 2.0)], images: 4, classes: 2 },
        Case {
            name: "many models",
            skills: (0..12).map(|model| skill(1.0 + 0.1 * f64::from(model), 1.0)).collect(),
            images: 150,
            classes: 6,
        },
    ];
    for case in cases {
        let answers = Answers::new(&case.skills, case.images, case.classes, 7);
        let models = case.skills.len();
        for pool in Pool::ALL {
            let what = format!("{}, {pool:?}", case.name);
            let weights = pool.fit(&answers).unwrap();
            assert_valid(&weights, &what);
            let loss = pool.loss(&answers, &weights);
            let assert_best = |others: &[f64]| {
                let other_loss = pool.loss(&answers, others);
                assert!(
                    loss < other_loss + 1.01 * MEAN_NLL_TOLERANCE,
                    "{what}: {others:?} with {other_loss} beats {weights:?} with {loss}"
                );
            };
            assert_best(&vec![1.0 / models as f64; models]);
            let mut random = Random::new(8);
            for _ in 0..30 {
                let others = random.weights(models);
                assert_best(&others);
                for closeness in [1e-2, 1e-4] {
                    let difference = moved(&others, &weights, -1.0);
                    assert_best(&moved(&weights, &difference, closeness));
                }
            }
            let most_of_one = |model| (0..models).map(move |other| if other == model { 1.0 } else { 0.0 });
            for model in 0..models {
                assert_best(&projected(&most_of_one(model).collect::<Vec<_>>()));
            }
        }
    }
}

#[test]
fn a_fit_beats_equal_weights_without_the_prior() {
    let skills = [Skill { margin: 1.0, noise: 1.0 }, Skill { margin: 3.0, noise: 1.0 }];
    let answers = Answers::new(&skills, 400, 4, 9);
    for pool in Pool::ALL {
        let weights = pool.fit(&answers).unwrap();
        let gained = pool.nll(&answers, &[0.5, 0.5]) - pool.nll(&answers, &weights);
        assert!(gained > 0.01, "{pool:?}: {gained}");
    }
}

#[test]
fn certain_answers_and_certain_errors_can_be_fitted() {
    // Both models rule out the true label of the last image.
    let certain = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 0.0]];
    let wrong = vec![vec![0.0, 1.0], vec![1.0, 0.0], vec![1.0, 0.0]];
    let answers = Answers { probabilities: vec![certain, wrong], labels: vec![0, 1, 1] };
    for pool in Pool::ALL {
        let weights = pool.fit(&answers).unwrap();
        assert_valid(&weights, "certain answers");
        assert!(weights[0] > 0.5, "{pool:?}: {weights:?}");
    }
}

#[test]
fn one_model_has_all_the_weight() {
    let one = Answers::new(&[Skill { margin: 1.0, noise: 1.0 }], 10, 3, 10);
    let certain = Answers { probabilities: vec![vec![vec![0.0, 1.0]]], labels: vec![0] };
    for pool in Pool::ALL {
        assert_eq!(pool.fit(&one), Some(vec![1.0]), "{pool:?}");
        assert_eq!(pool.fit(&certain), Some(vec![1.0]), "{pool:?}");
    }
}

#[test]
fn nothing_is_fitted_to_nothing() {
    let no_models = Answers { probabilities: Vec::new(), labels: vec![0, 1] };
    let no_images = Answers { probabilities: vec![Vec::new(), Vec::new()], labels: Vec::new() };
    for pool in Pool::ALL {
        assert_eq!(pool.fit(&no_models), None, "{pool:?}");
        assert_eq!(pool.fit(&no_images), None, "{pool:?}");
    }
}

#[test]
fn more_models_than_the_minimum_allows_still_have_the_sum_1() {
    let mut skills = vec![USELESS; 150];
    skills[3] = PERFECT;
    let answers = Answers::new(&skills, 40, 2, 11);
    for pool in Pool::ALL {
        let weights = pool.fit(&answers).unwrap();
        let sum: f64 = weights.iter().sum();
        assert!((sum - 1.0).abs() < 1e-12, "{pool:?}: {sum}");
        assert!(
            weights.iter().all(|&weight| weight > 0.003 && weight <= weights[3]),
            "{pool:?}: {weights:?}"
        );
    }
}

#[test]
fn weights_that_are_too_low_are_raised_at_the_cost_of_the_others() {
    let assert_close = |found: &[f64], wanted: &[f64]| {
        assert_eq!(found.len(), wanted.len());
        let close = found.iter().zip(wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-12);
        assert!(close, "{found:?}, not {wanted:?}");
    };
    assert_close(&shares(&[3.0, 1.0]), &[0.75, 0.25]);
    assert_close(&shares(&[1.0, 0.0, 2.0]), &[0.33, 0.01, 0.66]);
    // 10.01 of 1000 is enough until raising the first weight lowers it.
    assert_close(&shares(&[0.0, 10.01, 989.99]), &[0.01, 0.01, 0.98]);
    assert_close(&projected(&[0.5, 0.5]), &[0.5, 0.5]);
    assert_close(&projected(&[7.5, 7.1]), &[0.7, 0.3]);
    assert_close(&projected(&[-2e9, 5e9, 5e9]), &[0.01, 0.495, 0.495]);
}

#[test]
fn a_fit_of_many_images_takes_seconds() {
    let skills = [1.0, 2.0, 3.0, 2.0, 1.5].map(|margin| Skill { margin, noise: 1.0 });
    let answers = Answers::new(&skills, if cfg!(debug_assertions) { 200 } else { 6315 }, 43, 12);
    let logits: Vec<Vec<f32>> = answers.logarithms()[0]
        .iter()
        .map(|image| image.iter().map(|&logarithm| logarithm as f32).collect())
        .collect();
    let started = std::time::Instant::now();
    for pool in Pool::ALL {
        assert_valid(&pool.fit(&answers).unwrap(), "many images");
        println!("{pool:?} by {:?}", started.elapsed());
    }
    assert!(temperature(&rows(&logits), &answers.labels).is_some());
    let took = started.elapsed();
    println!("all by {took:?}");
    assert!(took.as_secs() < 20, "{took:?}");
}

/// Returns images in 40 groups of 1 to 5, with unequal numbers of groups of three classes.
fn grouped() -> (Vec<usize>, Vec<usize>) {
    let mut groups = Vec::new();
    let mut labels = Vec::new();
    for group in 0..40 {
        let label = [0, 0, 0, 1, 0, 1, 2, 0][group % 8];
        for _ in 0..=group % 5 {
            groups.push(1000 - 7 * group);
            labels.push(label);
        }
    }
    (groups, labels)
}

#[test]
fn folds_keep_groups_whole_and_classes_even() {
    let (groups, labels) = grouped();
    for count in [1, 2, 3, 5, 7] {
        let found = folds(&groups, &labels, count, 1);
        let mut fold_of_group = BTreeMap::new();
        for ((group, label), &fold) in groups.iter().zip(&labels).zip(&found) {
            assert!(fold < count, "fold {fold} of {count}");
            assert_eq!(*fold_of_group.entry(group).or_insert((fold, label)), (fold, label), "group {group}");
        }
        let groups_in = |fold: usize, of_label: Option<usize>| {
            let is_counted = |&&(at, &label): &&(usize, &usize)| {
                at == fold && of_label.is_none_or(|wanted| wanted == label)
            };
            fold_of_group.values().filter(is_counted).count()
        };
        for of_label in [None, Some(0), Some(1), Some(2)] {
            let counts: Vec<usize> = (0..count).map(|fold| groups_in(fold, of_label)).collect();
            let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
            assert!(spread <= 1, "label {of_label:?} in {count} folds: {counts:?}");
        }
    }
}

#[test]
fn a_seed_fixes_the_folds() {
    let (groups, labels) = grouped();
    assert_eq!(folds(&groups, &labels, 5, 1), folds(&groups, &labels, 5, 1));
    assert_ne!(folds(&groups, &labels, 5, 1), folds(&groups, &labels, 5, 2));
}

#[test]
fn the_order_of_images_does_not_move_them() {
    let (mut groups, mut labels) = grouped();
    let mut found = folds(&groups, &labels, 5, 1);
    groups.reverse();
    labels.reverse();
    found.reverse();
    assert_eq!(folds(&groups, &labels, 5, 1), found);
}

#[test]
fn there_may_be_more_folds_than_groups() {
    let mut found = folds(&[4, 4, 8, 6], &[0, 0, 1, 1], 10, 1);
    assert_eq!(found[0], found[1], "one group");
    found.sort_unstable();
    assert_eq!(found, [0, 0, 1, 2]);
    assert_eq!(folds(&[], &[], 3, 1), Vec::<usize>::new());
}
