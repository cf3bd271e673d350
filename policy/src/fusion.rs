//! Fusion: from several calibrated votes to one distribution.

use std::fmt;

use crate::probability::{Distribution, Temperature, Weight};

/// A method of combining distributions, known as an opinion pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusionMethod {
    /// The linear pool: the weighted mean of the probabilities. One model's certainty cannot veto the others.
    Linear,
    /// The logarithmic pool: the weighted mean of the log-probabilities, renormalised. A label that one model
    /// finds nearly impossible stays improbable.
    LogLinear,
    /// The logarithmic pool with weights and temperatures that a network computes for each image from the
    /// backbone's feature.
    Learned,
}

impl FusionMethod {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Linear, Self::LogLinear, Self::Learned];

    /// The methods that have the same weights for every image.
    pub const FIXED: [Self; 2] = [Self::Linear, Self::LogLinear];

    /// Returns the name that `ensemble.toml` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::LogLinear => "log_linear",
            Self::Learned => "learned",
        }
    }

    /// Returns the method of that name in `ensemble.toml`.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Combines distributions over the same labels, each with its weight; `None` if there are none.
    pub(crate) fn fuse<'a>(
        self,
        weighted: impl IntoIterator<Item = (&'a Distribution, f64)>,
    ) -> Option<Distribution> {
        let mut weighted = weighted.into_iter().peekable();
        let mut totals = vec![0.0; weighted.peek()?.0.probabilities().len()];
        for (distribution, weight) in weighted {
            match self {
                Self::Linear => {
                    add_weighted(&mut totals, distribution.probabilities().iter().copied(), weight);
                }
                Self::LogLinear | Self::Learned => {
                    add_weighted(&mut totals, distribution.logarithms(), weight);
                }
            }
        }
        Some(match self {
            Self::Linear => Distribution::proportional_to(totals),
            Self::LogLinear | Self::Learned => Distribution::softmax(&totals, Temperature::NEUTRAL),
        })
    }
}

impl fmt::Display for FusionMethod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

fn add_weighted(totals: &mut [f64], values: impl Iterator<Item = f64>, weight: f64) {
    for (total, value) in totals.iter_mut().zip(values) {
        *total += weight * value;
    }
}

/// Returns weights as shares with the sum 1.
///
/// They are divided by the largest first, so that a sum of huge weights cannot overflow.
pub(crate) fn shares(weights: &[Weight]) -> Vec<f64> {
    let largest = weights.iter().map(|weight| weight.get()).fold(0.0, f64::max);
    let relative: Vec<f64> = weights.iter().map(|weight| weight.get() / largest).collect();
    let sum: f64 = relative.iter().sum();
    relative.iter().map(|weight| weight / sum).collect()
}
