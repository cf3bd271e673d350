//! Numeric parity with Hugging Face transformers, checked on folders that hold a snapshot and the tensors
//! that the reference computed from it (in the format of `models/tests/reference/make_parity_fixtures.py`);
//! knows the architectures only through their registry.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::architectures::architecture::Architecture;
use crate::architectures::registry::load_model;
use crate::image::preprocess::Preprocessor;
pub use crate::inspect::fixture::Fixture;
use crate::inspect::fixture::UNDECIDED;
use crate::libtorch::Stream;
use crate::options::ModelOptions;
use crate::snapshot::folder::Snapshot;

/// The largest difference of a pixel value, in 8-bit steps.
const PIXEL_STEPS_MAX: f64 = 1.0;
/// The largest share of pixel values that may differ by more than rounding in fp32 explains, which is
/// `PIXEL_STEP_NOISE` steps.
const PIXEL_SHARE_MAX: f64 = 0.005;
/// The largest difference of a pixel value that rounding in fp32 explains, in 8-bit steps.
const PIXEL_STEP_NOISE: f64 = 0.01;
/// The tensors that the fixture script makes from others, as inputs only: no preprocessing computes them.
const INPUTS: [&str; 2] = ["rect.pixel_values", "decoder_input_ids"];
/// The number of entries that full-size fixtures keep at each end of a long sequence.
const KEPT_AT_EACH_END: i64 = 8;

/// The comparison of one tensor with the reference.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The tensor's name in the fixture.
    pub tensor: String,
    /// The largest absolute error, in `unit`.
    pub error: f64,
    /// The largest allowed error, in `unit`.
    pub tolerance: f64,
    /// The unit of `error` and `tolerance`.
    pub unit: Unit,
    /// The reason why the tensor cannot be compared, if it cannot.
    pub fault: Option<String>,
}

/// The unit of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The tensor's own values.
    Value,
    /// Steps of 8-bit pixel values.
    PixelStep,
    /// The share of pixel values that differ, in percent.
    PixelPercent,
    /// The number of entries that differ, for a tensor of integers.
    Entries,
}

impl Comparison {
    /// Returns whether the error is within the tolerance.
    pub fn passes(&self) -> bool {
        self.fault.is_none() && self.error <= self.tolerance
    }

    /// Returns a comparison that failed because the tensor cannot be compared.
    fn fault(tensor: &str, fault: String) -> Self {
        Self {
            tensor: tensor.to_owned(),
            error: f64::NAN,
            tolerance: 0.0,
            unit: Unit::Value,
            fault: Some(fault),
        }
    }
}

/// Runs one fixture folder through our implementation, on a device by its name in `ensemble.toml`.
///
/// # Errors
/// Returns an error if the fixture or its snapshot does not load. A tensor that does not agree is no error.
pub fn check(folder: &Path, device: &str) -> Result<Vec<Comparison>, ModelError> {
    check_with(folder, ModelOptions { device: device.to_owned(), ..ModelOptions::default() })
}

/// Does the same as [`check`] with other options, such as without CUDA graphs. Architecture, snapshot and
/// dtype are those of the fixture.
///
/// # Errors
/// Returns an error if the fixture or its snapshot does not load. A tensor that does not agree is no error.
pub fn check_with(folder: &Path, options: ModelOptions) -> Result<Vec<Comparison>, ModelError> {
    let fixture = Fixture::open(folder)?;
    let model_type = Snapshot::open(&fixture.snapshot())?.model_type()?;
    let architecture = Architecture::by_model_type(&model_type).ok_or_else(|| {
        ModelError::Unsupported(format!("no architecture here loads model_type {model_type:?}"))
    })?;
    let dtype = match fixture.dtype() {
        "float32" => "fp32",
        "bfloat16" => "bf16",
        "float16" => "fp16",
        other => return Err(ModelError::Unsupported(format!("fixture dtype {other}"))),
    };
    let options = ModelOptions {
        architecture: architecture.name.to_owned(),
        snapshot: fixture.snapshot(),
        dtype: dtype.to_owned(),
        ..options
    };
    let model = load_model(&options, Path::new(""))?;
    // The default stream will not do: graphs can be recorded on other streams only.
    let stream = Stream::new(model.info().placement.device)?;
    let _current = stream.enter()?;
    // libtorch panics on a fixture with unexpected shapes.
    let outputs = catch_unwind(AssertUnwindSafe(|| model.parity_outputs(&fixture)))
        .map_err(|_| ModelError::malformed(folder, "libtorch refused the fixture's tensors"))??;
    let mut names = fixture.names();
    names.retain(|name| !INPUTS.contains(&name.as_str()));
    names.sort();
    let mut comparisons = Vec::new();
    for name in &names {
        match outputs.get(name) {
            Some(ours) => comparisons.extend(compare(&fixture, name, ours, &model.info().preprocessor)?),
            None => {
                comparisons.push(Comparison::fault(name, "not computed by this implementation".to_owned()));
            }
        }
    }
    // A fixture keeps only some hidden states, but without the other tensors it would prove nothing.
    for name in outputs.keys().filter(|name| !names.contains(name) && !name.contains("hidden_states.")) {
        comparisons.push(Comparison::fault(name, "the fixture has no such tensor".to_owned()));
    }
    Ok(comparisons)
}

/// Compares one tensor with the expected one; pixel values give two comparisons.
fn compare(
    fixture: &Fixture,
    name: &str,
    ours: &Tensor,
    pre: &Preprocessor,
) -> Result<Vec<Comparison>, ModelError> {
    let expected = fixture.input(name)?;
    let mut ours = ours.f_to_device(tch::Device::Cpu)?;
    if fixture.keeps_ends_of(name) {
        ours = ends_of_sequence(&ours, &expected)?;
    }
    if ours.size() != expected.size() {
        let fault = format!("shape {:?}, expected {:?}", ours.size(), expected.size());
        return Ok(vec![Comparison::fault(name, fault)]);
    }
    let expected = match fixture.decided(name, &expected)? {
        Some(length) => {
            ours = ours.f_narrow(1, 0, length)?;
            expected.f_narrow(1, 0, length)?
        }
        None => expected,
    };
    let (ours, wanted) = (ours.f_to_kind(Kind::Double)?, expected.f_to_kind(Kind::Double)?);
    let difference = ours.f_sub(&wanted)?.f_abs()?;
    let largest = |x: &Tensor| f64::try_from(x.f_max()?);
    let row =
        |error, tolerance, unit| Comparison { tensor: name.to_owned(), error, tolerance, unit, fault: None };
    if bool::try_from(difference.f_isnan()?.f_any()?)? {
        return Ok(vec![Comparison::fault(name, "not a number".to_owned())]);
    }
    if name.rsplit('.').next() == Some("pixel_values") {
        let steps = pre.eight_bit_steps(&difference);
        let differing = steps.f_gt(PIXEL_STEP_NOISE)?.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?;
        return Ok(vec![
            row(largest(&steps)?, PIXEL_STEPS_MAX + PIXEL_STEP_NOISE, Unit::PixelStep),
            row(f64::try_from(differing)? * 100.0, PIXEL_SHARE_MAX * 100.0, Unit::PixelPercent),
        ]);
    }
    if !expected.is_floating_point() {
        let is_decided = ours.f_ne(UNDECIDED as f64)?;
        let differing = difference.f_gt(0.0)?.f_logical_and(&is_decided)?.f_sum(Kind::Double)?;
        return Ok(vec![row(f64::try_from(differing)?, 0.0, Unit::Entries)]);
    }
    let tolerance = fixture.tolerance(name, largest(&wanted.f_abs()?)?);
    Ok(vec![row(largest(&difference)?, tolerance, Unit::Value)])
}

/// Returns the first and last eight entries along the one dimension in which the sizes differ.
fn ends_of_sequence(ours: &Tensor, expected: &Tensor) -> Result<Tensor, tch::TchError> {
    let (have, want) = (ours.size(), expected.size());
    let Some(dimension) =
        (0..have.len()).find(|&index| want.get(index).is_some_and(|size| *size != have[index]))
    else {
        return Ok(ours.shallow_clone());
    };
    let (length, dimension) = (have[dimension], i64::try_from(dimension).unwrap_or(0));
    let first = ours.f_narrow(dimension, 0, KEPT_AT_EACH_END.min(length))?;
    let last = ours.f_narrow(dimension, (length - KEPT_AT_EACH_END).max(0), KEPT_AT_EACH_END.min(length))?;
    Tensor::f_cat(&[first, last], dimension)
}
