//! How far a model's logits are to be believed.

use std::fmt;

use crate::probability::{Distribution, Logits, Temperature};

/// What [`VectorScaling`] can make of a log-probability at most: half of it, twice, is still a number.
const SCALED_MAX: f64 = f64::MAX / 2.0;

/// What makes probabilities of a model's logits. [`Logits::calibrated`] applies it, so that nobody has to
/// know which it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Calibration {
    /// softmax(logits / temperature): surer or less sure, with the same favourite.
    Temperature(Temperature),
    /// A scale and a bias for each label, which also mend what the model says too often or too seldom.
    Vector(VectorScaling),
}

impl Calibration {
    /// The softmax of the logits as they are.
    pub const NEUTRAL: Self = Self::Temperature(Temperature::NEUTRAL);

    /// The temperature, where it is one.
    pub fn temperature(&self) -> Option<Temperature> {
        match self {
            Self::Temperature(temperature) => Some(*temperature),
            Self::Vector(_) => None,
        }
    }

    /// The scales and biases, where it has some.
    pub fn scaling(&self) -> Option<&VectorScaling> {
        match self {
            Self::Temperature(_) => None,
            Self::Vector(scaling) => Some(scaling),
        }
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Temperature(temperature) => write!(formatter, "temperature {}", temperature.get()),
            Self::Vector(_) => formatter.write_str("vector scaling"),
        }
    }
}

/// softmax(scale ∘ ln softmax(logits) + bias), with a scale and a bias for each label: vector scaling (Guo et
/// al. 2017, arXiv 1706.04599) of log-probabilities (Kull et al. 2019, arXiv 1910.12656).
///
/// A number that is added to all logits of an image says nothing, and a model may add any. A temperature does
/// not see it, but scales that differ would: so it is taken away first. What `concord fit` keeps of a vote
/// lacks it as well.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorScaling {
    scale: Vec<f64>,
    bias: Vec<f64>,
}

impl VectorScaling {
    /// `None` for no labels, unless there is one scale and one bias for each, scales that are not finite and
    /// greater than 0, or biases that are not finite.
    pub fn new(scale: Vec<f64>, bias: Vec<f64>) -> Option<Self> {
        let is_one_each = !scale.is_empty() && scale.len() == bias.len();
        let are_in_range =
            scale.iter().copied().all(Self::is_scale) && bias.iter().copied().all(f64::is_finite);
        (is_one_each && are_in_range).then_some(Self { scale, bias })
    }

    /// Whether a number can be a scale: a negative one would turn round what the model says.
    pub(crate) fn is_scale(value: f64) -> bool {
        value.is_finite() && value > 0.0
    }

    /// What each label's log-probability is multiplied by.
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }

    /// What is added to it then.
    pub fn bias(&self) -> &[f64] {
        &self.bias
    }

    fn applied(&self, log_probabilities: &[f64]) -> Distribution {
        debug_assert_eq!(log_probabilities.len(), self.scale.len(), "checked where policies are made");
        let scales_and_biases = self.scale.iter().zip(&self.bias);
        let scaled: Vec<f64> = log_probabilities
            .iter()
            .zip(scales_and_biases)
            .map(|(logarithm, (scale, bias))| (logarithm * scale + bias).clamp(-SCALED_MAX, SCALED_MAX))
            .collect();
        Distribution::softmax(&scaled, Temperature::NEUTRAL)
    }
}

impl Logits<'_> {
    /// The probabilities that a calibration makes of the logits. One of vector scaling has as many labels as
    /// these.
    pub fn calibrated(self, calibration: &Calibration) -> Distribution {
        match calibration {
            Calibration::Temperature(temperature) => self.softmax(*temperature),
            Calibration::Vector(scaling) => scaling.applied(&self.log_probabilities()),
        }
    }

    /// The logarithm of each label's uncalibrated probability, all finite.
    pub fn log_probabilities(self) -> Vec<f64> {
        self.softmax(Temperature::NEUTRAL).logarithms().collect()
    }

    fn softmax(self, temperature: Temperature) -> Distribution {
        let logits: Vec<f64> = self.values().iter().map(|&logit| f64::from(logit)).collect();
        Distribution::softmax(&logits, temperature)
    }
}
