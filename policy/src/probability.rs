//! Numbers that carry what was checked about them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The least log-probability, to which lower ones are raised: below it `exp` leaves the normal numbers. It
/// keeps a label that one model finds impossible from minus infinity, which no other model could outweigh.
const LOG_PROBABILITY_MIN: f64 = -708.0;

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Probability(f64);

impl TryFrom<f64> for Probability {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        Self::new(value).ok_or("not a number from 0 to 1")
    }
}

impl Probability {
    /// Makes a probability; `None` if the value is not from 0 to 1.
    pub fn new(value: f64) -> Option<Self> {
        (0.0..=1.0).contains(&value).then_some(Self(value))
    }

    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A divisor of a model's logits before the softmax: finite and greater than 0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Temperature(f64);

impl Temperature {
    /// The temperature that leaves logits as they are.
    pub const NEUTRAL: Self = Self(1.0);

    /// Makes one of a number; `None` if it is not finite and greater than 0.
    pub fn new(value: f64) -> Option<Self> {
        is_positive(value).then_some(Self(value))
    }

    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// The weight of a model's vote beside the others: finite and greater than 0.
///
/// There is no weight 0: such a model would cost its time and count for nothing.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Weight(f64);

impl Weight {
    /// The weight of every model of a task that gives no weights.
    pub const UNIFORM: Self = Self(1.0);

    /// Makes one of a number; `None` if it is not finite and greater than 0.
    pub fn new(value: f64) -> Option<Self> {
        is_positive(value).then_some(Self(value))
    }

    /// Returns the number.
    pub fn get(self) -> f64 {
        self.0
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && value > 0.0
}

/// The numbers that a model gave for each label, uncalibrated: at least one number, all finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logits<'a>(&'a [f32]);

/// The reason why numbers are not usable as [`Logits`].
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum LogitsError {
    /// There is not one logit for each label.
    #[error("{found} logits for {labels} labels")]
    Count {
        /// The number of the task's labels.
        labels: usize,
        /// The number of logits.
        found: usize,
    },
    /// A logit is not a number, or infinite.
    #[error("logit {index} is {value}")]
    NotFinite {
        /// The label's index.
        index: usize,
        /// The value that the model gave.
        value: f32,
    },
}

impl<'a> Logits<'a> {
    /// Makes logits of one finite number for each of `labels` labels.
    ///
    /// # Errors
    /// When there are more or fewer, none at all, or one is not finite.
    pub fn new(values: &'a [f32], labels: usize) -> Result<Self, LogitsError> {
        if values.len() != labels || values.is_empty() {
            return Err(LogitsError::Count { labels, found: values.len() });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(LogitsError::NotFinite { index, value: values[index] }),
            None => Ok(Self(values)),
        }
    }

    /// Returns the numbers, in the order of the labels.
    pub fn values(self) -> &'a [f32] {
        self.0
    }
}

/// A probability for each label: not empty, none negative, their sum 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f64>")]
pub struct Distribution(Vec<f64>);

impl TryFrom<Vec<f64>> for Distribution {
    type Error = &'static str;

    fn try_from(probabilities: Vec<f64>) -> Result<Self, Self::Error> {
        Self::new(probabilities).ok_or("not a distribution")
    }
}

impl Distribution {
    /// Makes a distribution of probabilities; `None` if their sum is not 1 or one is not from 0 to 1.
    pub fn new(probabilities: Vec<f64>) -> Option<Self> {
        /// Rounding moves a sum of thousands of probabilities by less.
        const SUM_ERROR_MAX: f64 = 1e-9;
        let sum: f64 = probabilities.iter().sum();
        let is_distribution = (sum - 1.0).abs() <= SUM_ERROR_MAX
            && probabilities.iter().all(|probability| (0.0..=1.0).contains(probability));
        is_distribution.then_some(Self(probabilities))
    }

    /// Computes the softmax of finite `values` divided by `temperature`, in the form that cannot overflow.
    pub(crate) fn softmax(values: &[f64], temperature: Temperature) -> Self {
        let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let scaled = values.iter().map(|value| (value - largest) / temperature.get());
        Self::proportional_to(scaled.map(|log| log.max(LOG_PROBABILITY_MIN).exp()).collect())
    }

    /// Divides parts by their sum. None may be negative, and one must be greater than 0.
    pub(crate) fn proportional_to(mut parts: Vec<f64>) -> Self {
        let sum: f64 = parts.iter().sum();
        for part in &mut parts {
            *part /= sum;
        }
        Self(parts)
    }

    /// Returns the probabilities, in the order of the labels.
    pub fn probabilities(&self) -> &[f64] {
        &self.0
    }

    /// Returns the natural logarithms of the probabilities, all finite.
    pub(crate) fn logarithms(&self) -> impl Iterator<Item = f64> {
        self.0.iter().map(|probability| probability.ln().max(LOG_PROBABILITY_MIN))
    }

    /// Returns the distribution in proportion to the probabilities to the power of `inverse_temperature`,
    /// which is finite and greater than 0.
    pub(crate) fn sharpened(&self, inverse_temperature: f64) -> Self {
        let logarithms: Vec<f64> =
            self.logarithms().map(|logarithm| logarithm * inverse_temperature).collect();
        Self::softmax(&logarithms, Temperature::NEUTRAL)
    }

    /// Returns the index of the most probable label; of several equal ones, the first.
    pub fn argmax(&self) -> usize {
        self.peak().0
    }

    /// Returns the probability of the most probable label.
    pub fn confidence(&self) -> Probability {
        Probability(self.peak().1)
    }

    fn peak(&self) -> (usize, f64) {
        let mut peak = (0, 0.0);
        for (index, &probability) in self.0.iter().enumerate() {
            if probability > peak.1 {
                peak = (index, probability);
            }
        }
        peak
    }
}
