//! Calibration: from a model's logits to probabilities that can be believed.

use std::fmt;

use crate::probability::{Distribution, Logits, Temperature};

/// The largest scaled log-probability: half the range of `f64`, so that the difference of two is still
/// finite.
const SCALED_MAX: f64 = f64::MAX / 2.0;

/// A map from a model's logits to probabilities, applied by [`Logits::calibrated`].
#[derive(Debug, Clone, PartialEq)]
pub enum Calibration {
    /// softmax(logits / temperature): more or less confident, with the same most probable label.
    Temperature(Temperature),
    /// A scale and a bias for each label, which also correct labels that the model favours or neglects.
    Vector(VectorScaling),
}

impl Calibration {
    /// The softmax of the logits as they are.
    pub const NEUTRAL: Self = Self::Temperature(Temperature::NEUTRAL);

    /// Returns the temperature, if it is one.
    pub fn temperature(&self) -> Option<Temperature> {
        match self {
            Self::Temperature(temperature) => Some(*temperature),
            Self::Vector(_) => None,
        }
    }

    /// Returns the vector scaling, if it is one.
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

/// Vector scaling (Guo et al. 2017, arXiv 1706.04599) of log-probabilities (Kull et al. 2019, arXiv
/// 1910.12656): softmax(scale ∘ ln softmax(logits) + bias), with a scale and a bias for each label.
///
/// A constant that a model adds to all logits of an image carries no information. A temperature is blind to
/// it, but scales that differ are not; the log-softmax takes it away first.
#[derive(Debug, Clone, PartialEq)]
pub struct VectorScaling {
    scale: Vec<f64>,
    bias: Vec<f64>,
}

impl VectorScaling {
    /// Makes a scaling of a scale and a bias for each label. `None` if there are none, their numbers differ,
    /// a scale is not finite and greater than 0, or a bias is not finite.
    pub fn new(scale: Vec<f64>, bias: Vec<f64>) -> Option<Self> {
        let is_one_each = !scale.is_empty() && scale.len() == bias.len();
        let are_in_range =
            scale.iter().copied().all(Self::is_scale) && bias.iter().copied().all(f64::is_finite);
        (is_one_each && are_in_range).then_some(Self { scale, bias })
    }

    /// Returns whether a number can be a scale: a negative one would reverse the model's order of labels.
    pub(crate) fn is_scale(value: f64) -> bool {
        value.is_finite() && value > 0.0
    }

    /// Returns the factor of each label's log-probability.
    pub fn scale(&self) -> &[f64] {
        &self.scale
    }

    /// Returns the summand of each label, added after the factor.
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
    /// Returns the calibrated probabilities. A vector scaling must have as many labels as there are logits.
    pub fn calibrated(self, calibration: &Calibration) -> Distribution {
        match calibration {
            Calibration::Temperature(temperature) => self.softmax(*temperature),
            Calibration::Vector(scaling) => scaling.applied(&self.log_probabilities()),
        }
    }

    /// Returns the logarithm of each label's uncalibrated probability, all finite.
    pub fn log_probabilities(self) -> Vec<f64> {
        self.softmax(Temperature::NEUTRAL).logarithms().collect()
    }

    fn softmax(self, temperature: Temperature) -> Distribution {
        let logits: Vec<f64> = self.values().iter().map(|&logit| f64::from(logit)).collect();
        Distribution::softmax(&logits, temperature)
    }
}
