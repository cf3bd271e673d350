//! Training of a small network: `AdamW` on random parts of the examples, until what was kept apart no longer gains.

use concord_policy::{Dense, ImageFusion, Network};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

/// Weights are drawn towards 0 by this share of the learning rate: features are many and examples few.
const WEIGHT_DECAY: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-3;
/// So many examples a step.
const BATCH: usize = 256;
/// An input that is the same everywhere tells nothing, and would be divided by 0: it is left as it is.
const DEVIATION_MIN: f64 = 1e-6;
/// Of the loss, in nats: less is rounding, and no reason to leave what it starts from.
const GAIN_MIN: f64 = 1e-5;

/// Why a network could not be trained.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    /// No example to learn from, or none kept apart.
    #[error("there are too few examples to train a network on")]
    TooFew,
    /// Inputs of several lengths, or empty ones.
    #[error("the features of images are empty, or of several lengths")]
    Widths,
    /// The loss is not finite before anything has been learned.
    #[error("the examples to train a network on are not finite")]
    NotFinite,
    /// The trained weights make no network.
    #[error("{0}")]
    Network(String),
    /// libtorch failed.
    #[error(transparent)]
    Libtorch(#[from] tch::TchError),
}

/// One image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Example<'a> {
    /// What the network is given.
    pub(crate) input: &'a [f32],
    /// Whether it is kept apart: not learned from, but to see when to stop.
    pub(crate) validates: bool,
}

/// What the network's outputs are to be, in the order of the examples.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal<'a> {
    /// For each image, how much each model counts and how sure it may be: [`ImageFusion`] makes of them weights and inverse
    /// temperatures, by which the models' log-probabilities are summed so that the truth becomes as probable as possible.
    /// Training starts from the fixed weights, and from inverse temperatures of 1.
    Fusion {
        /// Finite, \[examples, models, labels\], row after row.
        log_probabilities: &'a [f32],
        /// The index of each example's true label.
        truths: &'a [usize],
        /// Of each model, greater than 0.
        fixed: &'a [f64],
        /// With the votes of how many of the models, in their order, an answer may be given: at least one number. What counts
        /// is the mean over them.
        answers: &'a [usize],
    },
    /// The one output is the log-odds that this is true. Training starts from what the first input says, which are such
    /// log-odds.
    Truth(&'a [bool]),
}

/// How it is trained; the defaults are those that `docs/RESULTS.md` was made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Training {
    /// Width of the hidden layer.
    pub(crate) hidden: usize,
    /// Passes over the examples, at most.
    pub(crate) epochs: usize,
    /// It ends after so many passes in which the examples that were kept apart gained nothing.
    pub(crate) patience: usize,
    /// Of the first weights and of the order of examples.
    pub(crate) seed: i64,
}

impl Default for Training {
    fn default() -> Self {
        Self { hidden: 32, epochs: 200, patience: 20, seed: 0 }
    }
}

/// The network that is best on the examples kept apart, out of those after each pass and the one that it starts from, which
/// is what counts where nothing is learned. The same arguments give the same network on one machine.
///
/// # Errors
/// When there are no examples to learn from or none kept apart, inputs of several lengths, or libtorch fails.
///
/// # Panics
/// When the goal has not as many entries as there are examples, or is not as [`Goal`] says.
pub(crate) fn train(
    examples: &[Example<'_>],
    goal: Goal<'_>,
    training: Training,
) -> Result<Network, TrainError> {
    let rows = |validates: bool| -> Vec<i64> {
        let indices = (0..).zip(examples).filter(|(_, example)| example.validates == validates);
        indices.map(|(index, _)| index).collect()
    };
    let (mut learned, apart) = (rows(false), rows(true));
    if learned.is_empty() || apart.is_empty() {
        return Err(TrainError::TooFew);
    }
    let apart = Tensor::f_from_slice(&apart)?;
    let inputs = Inputs::of(examples, &learned)?;
    let mut numbers = Numbers::new(training.seed);
    let store = nn::VarStore::new(Device::Cpu);
    let learner = Learner::new(&store, &inputs, Target::new(goal, examples.len())?, training, &mut numbers)?;
    let Inputs { values: inputs, mean, scale, .. } = inputs;
    let mut optimizer =
        nn::AdamW { wd: WEIGHT_DECAY, ..nn::AdamW::default() }.build(&store, LEARNING_RATE)?;
    let loss_apart = |learner: &Learner| -> Result<f64, TrainError> {
        Ok(tch::no_grad(|| learner.loss(&inputs, &apart))?.f_double_value(&[])?)
    };
    let mut best = learner.layers()?;
    let (mut least, mut since) = (loss_apart(&learner)?, 0);
    if !least.is_finite() {
        return Err(TrainError::NotFinite);
    }
    for _ in 0..training.epochs {
        numbers.shuffle(&mut learned);
        for part in learned.chunks(BATCH) {
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

/// All examples' inputs, standardised by those that are learned from.
struct Inputs {
    /// [examples, width].
    values: Tensor,
    mean: Tensor,
    scale: Tensor,
    width: i64,
}

impl Inputs {
    fn of(examples: &[Example<'_>], learned: &[i64]) -> Result<Self, TrainError> {
        let width = examples.first().map_or(0, |example| example.input.len());
        if width == 0 || examples.iter().any(|example| example.input.len() != width) {
            return Err(TrainError::Widths);
        }
        let values: Vec<f32> = examples.iter().flat_map(|example| example.input).copied().collect();
        let width = width as i64;
        let values = Tensor::f_from_slice(&values)?.f_view([-1, width])?;
        let known = values.f_index_select(0, &Tensor::f_from_slice(learned)?)?;
        let mean = known.f_mean_dim([0].as_slice(), false, Kind::Float)?;
        let deviation = known.f_std_dim([0].as_slice(), false, false)?;
        let is_same = deviation.f_lt(DEVIATION_MIN)?;
        let scale = deviation.f_masked_fill(&is_same, 1.0)?.f_reciprocal()?;
        Ok(Self { values: (values - &mean) * &scale, mean, scale, width })
    }
}

/// The network while it learns.
struct Learner {
    hidden: nn::Linear,
    output: nn::Linear,
    target: Target,
}

enum Target {
    Fusion {
        /// [examples, models, labels]
        log_probabilities: Tensor,
        /// \[examples\]
        truths: Tensor,
        /// The logarithms of the fixed weights.
        start: Vec<f32>,
        answers: Vec<i64>,
    },
    /// 0 or 1, [examples, 1].
    Truth(Tensor),
}

impl Target {
    fn new(goal: Goal<'_>, examples: usize) -> Result<Self, TrainError> {
        match goal {
            Goal::Fusion { log_probabilities, truths, fixed, answers } => {
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
            Goal::Truth(is_true) => {
                assert_eq!(is_true.len(), examples, "a truth for each example");
                let truths: Vec<f32> = is_true.iter().map(|is_true| f32::from(u8::from(*is_true))).collect();
                Ok(Self::Truth(Tensor::f_from_slice(&truths)?.f_view([-1, 1])?))
            }
        }
    }

    /// \[outputs, hidden units\] and \[outputs\], and the rows of the hidden units that they need, each of one input.
    fn start(&self, hidden: usize, inputs: &Inputs) -> Result<Start, TrainError> {
        match self {
            // Whatever the image, the fixed weights, and nothing surer or less sure.
            Self::Fusion { start, .. } => {
                let mut bias = start.clone();
                bias.resize(2 * start.len(), 0.0);
                Ok(Start { weight: vec![0.0; bias.len() * hidden], bias, units: &[] })
            }
            // x = relu(x) - relu(-x), of the first input as it was before it was standardised.
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

/// What two hidden units multiply the first input by, so that their difference is that input.
const FIRST_INPUT: [f32; 2] = [1.0, -1.0];

/// What the output layer is at first.
struct Start {
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// The first hidden units read the first input alone, multiplied by these.
    units: &'static [f32],
}

impl Learner {
    fn new(
        store: &nn::VarStore,
        inputs: &Inputs,
        target: Target,
        training: Training,
        numbers: &mut Numbers,
    ) -> Result<Self, TrainError> {
        let (root, width) = (store.root(), inputs.width as usize);
        let hidden_units = training.hidden.max(FIRST_INPUT.len());
        let start = target.start(hidden_units, inputs)?;
        let layer = |name: &str, from: usize, to: usize| {
            nn::linear(&root / name, from as i64, to as i64, nn::LinearConfig::default())
        };
        let hidden = layer("hidden", width, hidden_units);
        let output = layer("output", hidden_units, start.bias.len());
        // PyTorch's own range for a linear layer.
        let range = 1.0 / (width as f32).sqrt();
        let mut rows = numbers.between(-range, range, width * hidden_units);
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

    /// Of the examples with these indices, the mean.
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
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.f_detach()?.f_flatten(0, -1)?);
        let dense = |layer: &nn::Linear| {
            let bias = layer.bs.as_ref().map(numbers).transpose()?.unwrap_or_default();
            Ok(Dense { weight: numbers(&layer.ws)?, bias })
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

/// Numbers that look random, the same for each seed. Those of libtorch belong to the whole process: whatever else draws some
/// at the same time would change what is learned.
struct Numbers(blake3::OutputReader);

impl Numbers {
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

    /// In an order of its own (Fisher and Yates, as Durstenfeld 1964 has it).
    fn shuffle(&mut self, values: &mut [i64]) {
        for last in (1..values.len()).rev() {
            let chosen = (u64::from(self.next()) * (last as u64 + 1)) >> 32;
            values.swap(last, chosen as usize);
        }
    }
}

#[cfg(test)]
mod tests;
