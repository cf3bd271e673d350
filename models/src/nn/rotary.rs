//! Rotary position embeddings (Su et al., arXiv 2104.09864), and their YaRN scaling to longer contexts (Peng
//! et al., arXiv 2309.00071).

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// The `rope_parameters` or `rope_scaling` of a `config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RopeParameters {
    pub(crate) rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The former name of `rope_type`.
    r#type: Option<String>,
    factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    truncate: Option<bool>,
}

/// The parameters of YaRN scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Yarn {
    factor: f64,
    attention_factor: f64,
    beta_fast: f64,
    beta_slow: f64,
    original_positions: f64,
    truncate: bool,
}

impl RopeParameters {
    /// Returns the scaling that the parameters ask for, or `None` for plain rotary embeddings.
    ///
    /// # Errors
    /// Returns a message if the type of scaling is not supported, or a parameter of it is missing or out of
    /// range.
    pub(crate) fn scaling(&self) -> Result<Option<Yarn>, String> {
        match self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default") {
            "default" => Ok(None),
            "yarn" => self.yarn().map(Some),
            other => Err(format!("rope_type {other:?} is not supported: default, yarn")),
        }
    }

    fn yarn(&self) -> Result<Yarn, String> {
        let positive = |name: &str, value: Option<f64>| match value {
            Some(value) if value > 0.0 && value.is_finite() => Ok(value),
            value => Err(format!("yarn: {name} {value:?} must be greater than 0")),
        };
        if self.mscale.is_some() {
            return Err("yarn: mscale is not supported".to_owned());
        }
        let factor = positive("factor", self.factor)?;
        let default_factor = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
        Ok(Yarn {
            factor,
            attention_factor: positive("attention_factor", self.attention_factor.or(Some(default_factor)))?,
            beta_fast: positive("beta_fast", self.beta_fast.or(Some(32.0)))?,
            beta_slow: positive("beta_slow", self.beta_slow.or(Some(1.0)))?,
            original_positions: positive(
                "original_max_position_embeddings",
                self.original_max_position_embeddings,
            )?,
            truncate: self.truncate.unwrap_or(true),
        })
    }
}

impl Yarn {
    /// Computes for each of `pairs` frequencies the share, 0 … 1, to which it is divided by the factor (1)
    /// rather than kept (0), as `_compute_yarn_parameters` in transformers' `modeling_rope_utils.py` does.
    fn divided(&self, theta: f64, pairs: i64) -> Tensor {
        let width = (2 * pairs) as f64;
        let dimension = |rotations: f64| {
            width * (self.original_positions / (rotations * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (dimension(self.beta_fast), dimension(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
        if low == high {
            high += 0.001;
        }
        ((Tensor::arange(pairs, (Kind::Float, Device::Cpu)) - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// The rotation angles of positions, for heads of one width.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// The frequencies, [width / 2], in fp32.
    frequencies: Tensor,
    /// The factor of cosine and sine.
    scale: f64,
}

impl Rotary {
    /// Computes the frequencies 1 / θ^(2k / width); with YaRN, a mixture of them and of themselves divided by
    /// the factor.
    pub(crate) fn new(width: i64, theta: f64, scaling: Option<Yarn>, device: Device) -> Self {
        let exponents = Tensor::arange_start_step(0, width, 2, (Kind::Float, Device::Cpu)) / width as f64;
        let periods = Tensor::pow_scalar(theta, &exponents);
        let frequencies = match scaling {
            None => periods.reciprocal(),
            Some(yarn) => {
                // The order of operations is that of the reference, because fp32 rounds at each step.
                let kept: Tensor = 1.0 - yarn.divided(theta, width / 2);
                (&periods * yarn.factor).reciprocal() * (1.0 - &kept) + periods.reciprocal() * &kept
            }
        };
        let scale = scaling.map_or(1.0, |yarn| yarn.attention_factor);
        Self { frequencies: frequencies.to_device(device), scale }
    }

    /// Returns the cosine and sine at these positions \[count\], [count, width] each.
    pub(crate) fn at(&self, positions: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1);
        ((angles.cos() * self.scale).to_kind(kind), (angles.sin() * self.scale).to_kind(kind))
    }
}
