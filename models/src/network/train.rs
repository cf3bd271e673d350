//! Training of a small network: `AdamW` on random parts of the examples, until what was kept apart no longer gains.

use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

use super::{Dense, Network};
use crate::ModelError;

/// Weights are drawn towards 0 by this share of the learning rate: features are many and examples few.
const WEIGHT_DECAY: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-3;
/// So many examples a step.
const BATCH: usize = 256;
/// An input that is the same everywhere tells nothing, and would be divided by 0.
const DEVIATION_MIN: f64 = 1e-6;
/// Of the loss, in nats: less is rounding, and no reason to leave what it starts from.
const GAIN_MIN: f64 = 1e-5;
/// What the models' probabilities of the truth are raised to: none at all would cost infinitely much.
const LIKELIHOOD_MIN: f64 = 1e-12;

/// One image.
#[derive(Debug, Clone, Copy)]
pub struct Example<'a> {
    /// What the network is given.
    pub input: &'a [f32],
    /// Whether it is kept apart: not learned from, but to see when to stop.
    pub validates: bool,
}

/// What the network's outputs are to be, in the order of the examples.
#[derive(Debug, Clone, Copy)]
pub enum Goal<'a> {
    /// Their softmax: weights of models whose mixture makes the truth as probable as possible. Training starts from the
    /// fixed weights.
    Mixture {
        /// Each model's probability of the truth, \[examples, models\], row after row.
        likelihoods: &'a [f32],
        /// Greater than 0.
        fixed: &'a [f64],
    },
    /// The one output is the log-odds that this is true.
    Truth(&'a [bool]),
}

/// How it is trained; the defaults are those that `docs/RESULTS.md` was made with.
#[derive(Debug, Clone, Copy)]
pub struct Training {
    /// Width of the hidden layer.
    pub hidden: usize,
    /// Passes over the examples, at most.
    pub epochs: usize,
    /// It ends after so many passes in which the examples that were kept apart gained nothing.
    pub patience: usize,
    /// Of the first weights and of the order of examples.
    pub seed: i64,
}

impl Default for Training {
    fn default() -> Self {
        Self { hidden: 32, epochs: 200, patience: 20, seed: 0 }
    }
}

/// The network that is best on the examples kept apart, out of those after each pass and the one that it starts from, which
/// says the same of every image. The same arguments give the same network on one machine.
///
/// # Errors
/// When there are no examples to learn from or none kept apart, inputs of several lengths, or libtorch fails.
///
/// # Panics
/// When the goal has not as many entries as there are examples.
pub fn train(examples: &[Example<'_>], goal: Goal<'_>, training: Training) -> Result<Network, ModelError> {
    let rows = |validates: bool| -> Vec<i64> {
        let indices = (0..).zip(examples).filter(|(_, example)| example.validates == validates);
        indices.map(|(index, _)| index).collect()
    };
    let (mut learned, apart) = (rows(false), rows(true));
    if learned.is_empty() || apart.is_empty() {
        return Err(ModelError::Unsupported("there are too few examples to train a network on".to_owned()));
    }
    let apart = Tensor::f_from_slice(&apart)?;
    let Inputs { values: inputs, mean, scale, width } = Inputs::of(examples, &learned)?;
    let mut numbers = Numbers::new(training.seed);
    let store = nn::VarStore::new(Device::Cpu);
    let learner = Learner::new(&store, width, goal, training, examples.len(), &mut numbers)?;
    let mut optimizer =
        nn::AdamW { wd: WEIGHT_DECAY, ..nn::AdamW::default() }.build(&store, LEARNING_RATE)?;
    let loss_apart = |learner: &Learner| -> Result<f64, ModelError> {
        Ok(tch::no_grad(|| learner.loss(&inputs, &apart))?.f_double_value(&[])?)
    };
    let mut best = learner.layers()?;
    let (mut least, mut since) = (loss_apart(&learner)?, 0);
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
    Network::new(values(&mean)?, values(&scale)?, best).map_err(ModelError::Unsupported)
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
    fn of(examples: &[Example<'_>], learned: &[i64]) -> Result<Self, ModelError> {
        let width = examples.first().map_or(0, |example| example.input.len());
        if width == 0 || examples.iter().any(|example| example.input.len() != width) {
            let message = "the features of pictures are empty, or of several lengths";
            return Err(ModelError::Unsupported(message.to_owned()));
        }
        let values: Vec<f32> = examples.iter().flat_map(|example| example.input).copied().collect();
        let width = width as i64;
        let values = Tensor::f_from_slice(&values)?.f_view([-1, width])?;
        let known = values.f_index_select(0, &Tensor::f_from_slice(learned)?)?;
        let mean = known.f_mean_dim([0].as_slice(), false, Kind::Float)?;
        let deviation = known.f_std_dim([0].as_slice(), false, false)?;
        let scale = deviation.f_clamp_min(DEVIATION_MIN)?.f_reciprocal()?;
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
    /// Logarithms, [examples, models].
    Mixture(Tensor),
    /// 0 or 1, [examples, 1].
    Truth(Tensor),
}

impl Learner {
    fn new(
        store: &nn::VarStore,
        width: i64,
        goal: Goal<'_>,
        training: Training,
        examples: usize,
        numbers: &mut Numbers,
    ) -> Result<Self, ModelError> {
        let (target, start) = match goal {
            Goal::Mixture { likelihoods, fixed } => {
                assert_eq!(
                    likelihoods.len(),
                    examples * fixed.len(),
                    "a likelihood for each model and example"
                );
                let likelihoods = Tensor::f_from_slice(likelihoods)?.f_view([-1, fixed.len() as i64])?;
                let start: Vec<f32> = fixed.iter().map(|weight| weight.ln() as f32).collect();
                (Target::Mixture(likelihoods.f_clamp_min(LIKELIHOOD_MIN)?.f_log()?), start)
            }
            Goal::Truth(is_true) => {
                assert_eq!(is_true.len(), examples, "a truth for each example");
                let truths: Vec<f32> = is_true.iter().map(|is_true| f32::from(u8::from(*is_true))).collect();
                // One of each more than there are, so that neither is impossible.
                let count =
                    |wanted: bool| 1.0 + is_true.iter().filter(|is_true| **is_true == wanted).count() as f32;
                (
                    Target::Truth(Tensor::f_from_slice(&truths)?.f_view([-1, 1])?),
                    vec![(count(true) / count(false)).ln()],
                )
            }
        };
        let root = store.root();
        let mut hidden =
            nn::linear(&root / "hidden", width, training.hidden as i64, nn::LinearConfig::default());
        let mut output = nn::linear(
            &root / "output",
            training.hidden as i64,
            start.len() as i64,
            nn::LinearConfig::default(),
        );
        tch::no_grad(|| -> Result<(), ModelError> {
            // PyTorch's own range for a linear layer, and it begins by saying the same of every image.
            let range = 1.0 / (width as f32).sqrt();
            let weights = numbers.between(-range, range, hidden.ws.numel());
            hidden.ws.f_copy_(&Tensor::f_from_slice(&weights)?.f_view_as(&hidden.ws)?)?;
            hidden.bs.as_mut().map(Tensor::f_zero_).transpose()?;
            _ = output.ws.f_zero_()?;
            if let Some(bias) = &mut output.bs {
                bias.f_copy_(&Tensor::f_from_slice(&start)?)?;
            }
            Ok(())
        })?;
        Ok(Self { hidden, output, target })
    }

    /// Of the examples with these indices, the mean.
    fn loss(&self, inputs: &Tensor, indices: &Tensor) -> Result<Tensor, ModelError> {
        let outputs =
            self.output.forward(&self.hidden.forward(&inputs.f_index_select(0, indices)?).f_relu()?);
        Ok(match &self.target {
            Target::Mixture(logarithms) => {
                let weighted =
                    outputs.f_log_softmax(-1, Kind::Float)? + logarithms.f_index_select(0, indices)?;
                weighted.f_logsumexp([-1].as_slice(), false)?.f_mean(Kind::Float)?.f_neg()?
            }
            Target::Truth(truths) => outputs.f_binary_cross_entropy_with_logits::<Tensor>(
                &truths.f_index_select(0, indices)?,
                None,
                None,
                tch::Reduction::Mean,
            )?,
        })
    }

    fn layers(&self) -> Result<Vec<Dense>, ModelError> {
        let numbers = |tensor: &Tensor| Vec::<f32>::try_from(tensor.f_detach()?.f_flatten(0, -1)?);
        let dense = |layer: &nn::Linear| {
            let bias = layer.bs.as_ref().map(numbers).transpose()?.unwrap_or_default();
            Ok(Dense { weight: numbers(&layer.ws)?, bias })
        };
        [&self.hidden, &self.output].into_iter().map(dense).collect()
    }
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
mod tests {
    use super::*;

    /// Two inputs, of which the first says which of two models is right, or whether an answer is.
    fn inputs() -> Vec<[f32; 2]> {
        (0..400_u16).map(|index| [if index % 2 == 0 { 3.0 } else { -1.0 }, f32::from(index % 7)]).collect()
    }

    fn examples(inputs: &[[f32; 2]]) -> Vec<Example<'_>> {
        inputs.iter().enumerate().map(|(index, input)| Example { input, validates: index % 5 == 0 }).collect()
    }

    #[test]
    fn weights_follow_who_is_right() {
        let inputs = inputs();
        let likelihoods: Vec<f32> =
            inputs.iter().flat_map(|input| if input[0] > 0.0 { [0.9, 0.2] } else { [0.1, 0.8] }).collect();
        let goal = Goal::Mixture { likelihoods: &likelihoods, fixed: &[0.5, 0.5] };
        let network = train(&examples(&inputs), goal, Training::default()).unwrap();
        for (input, first_is_right) in [([3.0, 2.0], true), ([-1.0, 5.0], false)] {
            let outputs = network.forward(&input).unwrap();
            assert_eq!(outputs[0] > outputs[1] + 1.0, first_is_right, "{outputs:?}");
            assert_eq!(outputs[0] + 1.0 < outputs[1], !first_is_right, "{outputs:?}");
        }
        let again = train(&examples(&inputs), goal, Training::default()).unwrap();
        assert_eq!(again, network, "the same arguments");
    }

    #[test]
    fn a_gate_says_how_likely_it_is() {
        let inputs = inputs();
        // Right always where the first input is high, every other time elsewhere.
        let is_right: Vec<bool> =
            inputs.iter().enumerate().map(|(index, input)| input[0] > 0.0 || index % 4 == 1).collect();
        let network = train(&examples(&inputs), Goal::Truth(&is_right), Training::default()).unwrap();
        let probability = |input: [f32; 2]| 1.0 / (1.0 + (-network.forward(&input).unwrap()[0]).exp());
        assert!(probability([3.0, 3.0]) > 0.9, "{}", probability([3.0, 3.0]));
        assert!((0.3..0.7).contains(&probability([-1.0, 3.0])), "{}", probability([-1.0, 3.0]));
    }

    #[test]
    fn where_nothing_can_be_learned_it_stays_what_it_starts_as() {
        let inputs = inputs();
        let likelihoods = vec![0.5; 2 * inputs.len()];
        let goal = Goal::Mixture { likelihoods: &likelihoods, fixed: &[0.8, 0.2] };
        let network = train(&examples(&inputs), goal, Training::default()).unwrap();
        let outputs = network.forward(&[0.0, 0.0]).unwrap();
        assert!((outputs[0] - outputs[1] - (0.8_f32 / 0.2).ln()).abs() < 1e-4, "{outputs:?}");
    }

    #[test]
    fn too_few_examples_are_told() {
        let inputs = inputs();
        let all = examples(&inputs);
        let learned: Vec<Example<'_>> = all.iter().filter(|example| !example.validates).copied().collect();
        for examples in [&all[..0], &all[..1], &learned] {
            let is_true = vec![true; examples.len()];
            let error = train(examples, Goal::Truth(&is_true), Training::default()).unwrap_err();
            assert!(error.to_string().contains("too few examples"), "{error}");
        }
    }
}
