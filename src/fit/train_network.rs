//! Trains a small network by `AdamW` on random batches, with early stopping on validation examples.

use concord_policy::{Dense, ImageFusion, Network};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

/// The weight decay. It is strong, because features are long and examples few.
const WEIGHT_DECAY: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-3;
/// The number of examples in a step.
const BATCH: usize = 256;
/// The least standard deviation by which an input is divided: a constant input says nothing, and would be
/// divided by 0.
const DEVIATION_MIN: f64 = 1e-6;
/// The least decrease of the validation loss that counts, in nats: a smaller one is rounding, and no reason
/// to leave the start.
const GAIN_MIN: f64 = 1e-5;

/// The error of a network that could not be trained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    /// There are no training or no validation examples.
    #[error("there are too few examples to train a network on")]
    TooFew,
    /// The inputs are empty, or have several lengths.
    #[error("the features of images are empty, or of several lengths")]
    Widths,
    /// The loss is not finite before anything has been learned.
    #[error("the examples to train a network on are not finite")]
    NotFinite,
    /// The trained weights are not a valid network.
    #[error("{0}")]
    Network(String),
    /// libtorch failed.
    #[error(transparent)]
    Libtorch(#[from] tch::TchError),
}

/// An example to train on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Example<'a> {
    /// The input of the network.
    pub(crate) input: &'a [f32],
    /// `true` for a validation example, which only serves for early stopping.
    pub(crate) validates: bool,
}

/// The objective of a training; its values are in the order of the examples.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Objective<'a> {
    /// The outputs are weights and inverse temperatures of the models for each image, as [`ImageFusion`]
    /// reads them, which maximize the probability of the true label in the weighted sum of the models'
    /// log-probabilities. Training starts from the fixed weights, and from inverse temperatures of 1.
    Fusion {
        /// The finite log-probabilities, \[examples, models, labels\] in row-major order.
        log_probabilities: &'a [f32],
        /// The index of each example's true label.
        truths: &'a [usize],
        /// The fixed weight of each model, greater than 0.
        fixed: &'a [f64],
        /// The numbers of models, in their order, whose votes an answer may be fused of: at least one number.
        /// The loss is the mean over them.
        answers: &'a [usize],
    },
    /// The only output is the log-odds that this is true. Training starts from the first input, which is such
    /// log-odds.
    Truth(&'a [bool]),
}

/// The options of a training; the defaults are those that `docs/RESULTS.md` was made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Training {
    /// The width of the hidden layer.
    pub(crate) hidden: usize,
    /// The largest number of passes over the training examples.
    pub(crate) epochs: usize,
    /// The number of passes without a lower validation loss after which training ends.
    pub(crate) patience: usize,
    /// The seed of the initial weights and of the order of examples.
    pub(crate) seed: i64,
}

impl Default for Training {
    fn default() -> Self {
        Self { hidden: 32, epochs: 200, patience: 20, seed: 0 }
    }
}

/// Trains a network, and returns the one with the lowest validation loss, of those after each pass and the
/// one at the start, which makes the same predictions as the fixed weights or the confidence. The same
/// arguments give the same network on one machine.
///
/// # Errors
/// When there are no training or no validation examples, inputs have several lengths, or libtorch fails.
///
/// # Panics
/// When the objective does not have as many entries as there are examples, or is not as [`Objective`]
/// requires.
pub(crate) fn train(
    examples: &[Example<'_>],
    objective: Objective<'_>,
    training: Training,
) -> Result<Network, TrainError> {
    let rows = |validates: bool| -> Vec<i64> {
        let indices = (0..).zip(examples).filter(|(_, example)| example.validates == validates);
        indices.map(|(index, _)| index).collect()
    };
    let (mut training_rows, held_out) = (rows(false), rows(true));
    if training_rows.is_empty() || held_out.is_empty() {
        return Err(TrainError::TooFew);
    }
    let held_out = Tensor::f_from_slice(&held_out)?;
    let inputs = Inputs::of(examples, &training_rows)?;
    let mut rng = Rng::new(training.seed);
    let store = nn::VarStore::new(Device::Cpu);
    let learner = Learner::new(&store, &inputs, Target::new(objective, examples.len())?, training, &mut rng)?;
    let Inputs { values: inputs, mean, scale, .. } = inputs;
    let mut optimizer =
        nn::AdamW { wd: WEIGHT_DECAY, ..nn::AdamW::default() }.build(&store, LEARNING_RATE)?;
    let loss_apart = |learner: &Learner| -> Result<f64, TrainError> {
        Ok(tch::no_grad(|| learner.loss(&inputs, &held_out))?.f_double_value(&[])?)
    };
    let mut best = learner.layers()?;
    let (mut least, mut since) = (loss_apart(&learner)?, 0);
    if !least.is_finite() {
        return Err(TrainError::NotFinite);
    }
    for _ in 0..training.epochs {
        rng.shuffle(&mut training_rows);
        for part in training_rows.chunks(BATCH) {
            optimizer.backward_step(&learner.loss(&inputs, &Tensor::f_from_slice(part)?)?);
        }
        let loss = loss_apart(&learner)?;
        since += 1;
        if loss < least - GAIN_MIN {
            (best, least, since) = (learner.layers()?, loss, 0);
        }
        if since >= training.patience {
            break;
        }
    }
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor);
    Network::new(values(&mean)?, values(&scale)?, best).map_err(TrainError::Network)
}

/// The inputs of all examples, standardized by the mean and deviation of the training examples.
struct Inputs {
    /// The values, [examples, width].
    values: Tensor,
    mean: Tensor,
    scale: Tensor,
    width: i64,
}

impl Inputs {
    fn of(examples: &[Example<'_>], training_rows: &[i64]) -> Result<Self, TrainError> {
        let width = examples.first().map_or(0, |example| example.input.len());
        if width == 0 || examples.iter().any(|example| example.input.len() != width) {
            return Err(TrainError::Widths);
        }
        let values: Vec<f32> = examples.iter().flat_map(|example| example.input).copied().collect();
        let width = width as i64;
        let values = Tensor::f_from_slice(&values)?.f_view([-1, width])?;
        let known = values.f_index_select(0, &Tensor::f_from_slice(training_rows)?)?;
        let mean = known.f_mean_dim([0].as_slice(), false, Kind::Float)?;
        let deviation = known.f_std_dim([0].as_slice(), false, false)?;
        let is_same = deviation.f_lt(DEVIATION_MIN)?;
        let scale = deviation.f_masked_fill(&is_same, 1.0)?.f_reciprocal()?;
        Ok(Self { values: (values - &mean) * &scale, mean, scale, width })
    }
}

/// The network in training.
struct Learner {
    hidden: nn::Linear,
    output: nn::Linear,
    target: Target,
}

enum Target {
    Fusion {
        /// The log-probabilities, [examples, models, labels].
        log_probabilities: Tensor,
        /// The true labels, \[examples\].
        truths: Tensor,
        /// The logarithms of the fixed weights.
        start: Vec<f32>,
        answers: Vec<i64>,
    },
    /// The targets, 0 or 1, [examples, 1].
    Truth(Tensor),
}

impl Target {
    fn new(objective: Objective<'_>, examples: usize) -> Result<Self, TrainError> {
        match objective {
            Objective::Fusion { log_probabilities, truths, fixed, answers } => {
                assert_eq!(truths.len(), examples, "a truth for each example");
                let models = fixed.len();
                let labels = log_probabilities.len() / (examples * models).max(1);
                assert_eq!(log_probabilities.len(), examples * models * labels, "as many labels for each");
                assert!(truths.iter().all(|truth| *truth < labels), "a label for each truth");
                assert!(fixed.iter().all(|weight| *weight > 0.0), "weights greater than 0");
                let is_some = |count: &usize| (1..=models).contains(count);
                assert!(!answers.is_empty() && answers.iter().all(is_some), "answers of some models");
                let shape = [examples, models, labels].map(|size| size as i64);
                let truths: Vec<i64> = truths.iter().map(|truth| *truth as i64).collect();
                Ok(Self::Fusion {
                    log_probabilities: Tensor::f_from_slice(log_probabilities)?.f_view(shape)?,
                    truths: Tensor::f_from_slice(&truths)?,
                    start: fixed.iter().map(|weight| weight.ln() as f32).collect(),
                    answers: answers.iter().map(|models| *models as i64).collect(),
                })
            }
            Objective::Truth(is_true) => {
                assert_eq!(is_true.len(), examples, "a truth for each example");
                let truths: Vec<f32> = is_true.iter().map(|is_true| f32::from(u8::from(*is_true))).collect();
                Ok(Self::Truth(Tensor::f_from_slice(&truths)?.f_view([-1, 1])?))
            }
        }
    }

    /// Returns the initial output layer, with the weights \[outputs, hidden units\] and the bias \[outputs\],
    /// and the hidden units that it needs, each of a single input.
    fn start(&self, hidden: usize, inputs: &Inputs) -> Result<Start, TrainError> {
        match self {
            // The fixed weights and inverse temperatures of 1, whatever the image.
            Self::Fusion { start, .. } => {
                let mut bias = start.clone();
                bias.resize(2 * start.len(), 0.0);
                Ok(Start { weight: vec![0.0; bias.len() * hidden], bias, units: &[] })
            }
            // x = relu(x) - relu(-x), for the first input x before its standardization.
            Self::Truth(_) => {
                let mean = inputs.mean.f_double_value(&[0])? as f32;
                let spread = 1.0 / inputs.scale.f_double_value(&[0])? as f32;
                let mut weight = vec![0.0; hidden];
                for (unit, sign) in weight.iter_mut().zip(FIRST_INPUT) {
                    *unit = sign * spread;
                }
                Ok(Start { weight, bias: vec![mean], units: &FIRST_INPUT })
            }
        }
    }
}

/// The factors of the first input in two hidden units, whose difference is then that input.
const FIRST_INPUT: [f32; 2] = [1.0, -1.0];

/// The initial output layer.
struct Start {
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// The factors of the first input in the first hidden units, which read no other input.
    units: &'static [f32],
}

impl Learner {
    fn new(
        store: &nn::VarStore,
        inputs: &Inputs,
        target: Target,
        training: Training,
        rng: &mut Rng,
    ) -> Result<Self, TrainError> {
        let (root, width) = (store.root(), inputs.width as usize);
        let hidden_units = training.hidden.max(FIRST_INPUT.len());
        let start = target.start(hidden_units, inputs)?;
        let layer = |name: &str, from: usize, to: usize| {
            nn::linear(&root / name, from as i64, to as i64, nn::LinearConfig::default())
        };
        let hidden = layer("hidden", width, hidden_units);
        let output = layer("output", hidden_units, start.bias.len());
        // PyTorch's default range for a linear layer.
        let range = 1.0 / (width as f32).sqrt();
        let mut rows = rng.between(-range, range, width * hidden_units);
        for (row, factor) in rows.chunks_exact_mut(width).zip(start.units) {
            row.fill(0.0);
            row[0] = *factor;
        }
        tch::no_grad(|| {
            set(&hidden, &rows, &vec![0.0; hidden_units])?;
            set(&output, &start.weight, &start.bias)
        })?;
        Ok(Self { hidden, output, target })
    }

    /// Returns the mean loss of the examples with these indices.
    fn loss(&self, inputs: &Tensor, indices: &Tensor) -> Result<Tensor, TrainError> {
        let outputs =
            self.output.forward(&self.hidden.forward(&inputs.f_index_select(0, indices)?).f_relu()?);
        match &self.target {
            Target::Fusion { log_probabilities, truths, start, answers } => {
                let log_probabilities = log_probabilities.f_index_select(0, indices)?;
                let truths = truths.f_index_select(0, indices)?;
                let all = start.len() as i64;
                let (weights, sharpness) = (outputs.f_narrow(-1, 0, all)?, outputs.f_narrow(-1, all, all)?);
                let bound = f64::from(ImageFusion::LOG_INVERSE_TEMPERATURE_MAX);
                let sharpness = sharpness.f_clamp(-bound, bound)?.f_exp()?;
                let mut total = Tensor::f_zeros([], (Kind::Float, Device::Cpu))?;
                for &models in answers {
                    let shares = weights.f_narrow(-1, 0, models)?.f_softmax(-1, Kind::Float)?;
                    let factors = (shares * sharpness.f_narrow(-1, 0, models)?).f_unsqueeze(-1)?;
                    let fused = (factors * log_probabilities.f_narrow(1, 0, models)?).f_sum_dim_intlist(
                        [1].as_slice(),
                        false,
                        Kind::Float,
                    )?;
                    total +=
                        fused.f_cross_entropy_loss::<Tensor>(&truths, None, Reduction::Mean, -100, 0.0)?;
                }
                Ok(total / answers.len() as f64)
            }
            Target::Truth(truths) => Ok(outputs.f_binary_cross_entropy_with_logits::<Tensor>(
                &truths.f_index_select(0, indices)?,
                None,
                None,
                Reduction::Mean,
            )?),
        }
    }

    fn layers(&self) -> Result<Vec<Dense>, TrainError> {
        let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.f_detach()?.f_flatten(0, -1)?);
        let dense = |layer: &nn::Linear| {
            let bias = layer.bs.as_ref().map(values).transpose()?.unwrap_or_default();
            Ok(Dense { weight: values(&layer.ws)?, bias })
        };
        [&self.hidden, &self.output].into_iter().map(dense).collect()
    }
}

fn set(layer: &nn::Linear, weight: &[f32], bias: &[f32]) -> Result<(), TrainError> {
    layer.ws.shallow_clone().f_copy_(&Tensor::f_from_slice(weight)?.f_view_as(&layer.ws)?)?;
    if let Some(of_layer) = &layer.bs {
        of_layer.shallow_clone().f_copy_(&Tensor::f_from_slice(bias)?)?;
    }
    Ok(())
}

/// A pseudorandom generator that only depends on its seed. That of libtorch is shared by the whole process:
/// another user of it at the same time would change the trained network.
struct Rng(blake3::OutputReader);

impl Rng {
    fn new(seed: i64) -> Self {
        Self(blake3::Hasher::new().update(b"concord network ").update(&seed.to_le_bytes()).finalize_xof())
    }

    fn next(&mut self) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn between(&mut self, low: f32, high: f32, count: usize) -> Vec<f32> {
        (0..count).map(|_| low + (high - low) * (self.next() as f32 / u32::MAX as f32)).collect()
    }

    /// Shuffles values (Fisher and Yates, in the form of Durstenfeld 1964).
    fn shuffle(&mut self, values: &mut [i64]) {
        for last in (1..values.len()).rev() {
            let chosen = (u64::from(self.next()) * (last as u64 + 1)) >> 32;
            values.swap(last, chosen as usize);
        }
    }
}

#[cfg(test)]
mod tests;
