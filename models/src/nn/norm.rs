//! Loading of norms from a snapshot.

pub(crate) use crate::kernels::{LayerNorm, RmsNorm};
use crate::snapshot::weights::WeightLoader;

impl LayerNorm {
    /// Loads `{name}.weight` and `{name}.bias` of \[width\] each.
    pub(crate) fn load(weights: &mut WeightLoader, name: &str, width: i64, eps: f64) -> Self {
        Self {
            weight: weights.tensor(&format!("{name}.weight"), &[width]),
            bias: weights.tensor(&format!("{name}.bias"), &[width]),
            eps,
        }
    }
}

impl RmsNorm {
    /// Loads `{name}.weight` of \[width\].
    pub(crate) fn load(weights: &mut WeightLoader, name: &str, width: i64, eps: f64) -> Self {
        Self { weight: weights.tensor(&format!("{name}.weight"), &[width]), eps }
    }
}
