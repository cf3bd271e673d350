//! Numeric agreement with Hugging Face transformers, on folders with a snapshot and the tensors that
//! the reference computed from it (the format of `models/tests/reference/make_parity_fixtures.py`).

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

/// Pixel values: at most one 8-bit step off …
const PIXEL_STEPS_MAX: f64 = 1.0;
/// … and at most this share of them by more than rounding in fp32 explains (in steps).
const PIXEL_SHARE_MAX: f64 = 0.005;
const PIXEL_STEP_NOISE: f64 = 0.01;
/// Made by the fixture script from other tensors, as input only: no preprocessing gives them.
const INPUTS: [&str; 2] = ["rect.pixel_values", "decoder_input_ids"];
/// Of long sequences, full-size fixtures keep this many entries at each end.
const KEPT_AT_EACH_END: i64 = 8;

/// One tensor, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Its name in the fixture.
    pub tensor: String,
    /// Largest absolute error, in the unit that `unit` names.
    pub error: f64,
    /// What is allowed.
    pub tolerance: f64,
    /// What `error` is measured in.
    pub unit: Unit,
    /// Why it cannot be compared, where it cannot.
    pub fault: Option<String>,
}

/// What an error is measured in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// The tensor's own values.
    Value,
    /// Steps of 8-bit pixel values.
    PixelStep,
    /// The share of pixel values that differ, in percent.
    PixelPercent,
    /// Entries that differ, of a tensor of integers.
    Entries,
}

impl Comparison {
    /// Whether the error is within the tolerance.
    pub fn passes(&self) -> bool {
        self.fault.is_none() && self.error <= self.tolerance
    }

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
/// When the fixture or its snapshot does not load; a tensor that does not agree is no error.
pub fn check(folder: &Path, device: &str) -> Result<Vec<Comparison>, ModelError> {
    check_with(folder, ModelOptions { device: device.to_owned(), ..ModelOptions::default() })
}

/// The same with other options, such as without graphs; architecture, snapshot and dtype are those of the fixture.
///
/// # Errors
/// When the fixture or its snapshot does not load; a tensor that does not agree is no error.
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
    // Not the default one: graphs are recorded on others only.
    let stream = Stream::new(model.info().placement.device)?;
    let _current = stream.enter()?;
    // A fixture of odd shapes makes libtorch throw.
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
    // A fixture keeps only some hidden states, but without the others it would prove nothing.
    for name in outputs.keys().filter(|name| !names.contains(name) && !name.contains("hidden_states.")) {
        comparisons.push(Comparison::fault(name, "the fixture has no such tensor".to_owned()));
    }
    Ok(comparisons)
}

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

/// The first and last eight entries along the one dimension in which the sizes differ.
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
