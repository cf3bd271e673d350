//! Numeric agreement with Hugging Face transformers, on folders with a snapshot and the tensors that
//! the reference computed from it (the format of `models/tests/reference/make_parity_fixtures.py`).

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::image::decode::decode;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::libtorch::Stream;
use crate::model::{Architecture, ModelOptions, load_model};
use crate::snapshot::folder::Snapshot;
use crate::snapshot::weights::SafetensorsFile;

/// Largest error in fp32, as a share of the largest magnitude in the expected tensor.
const FP32_TOLERANCE: f64 = 1e-4;
/// In half precision the reference differs from itself by its choice of attention kernel (`noise`); two
/// implementations that are each that far from the exact result may differ by twice as much.
const NOISE_FACTOR: f64 = 2.0;
/// Pixel values: at most one 8-bit step off …
const PIXEL_STEPS_MAX: f64 = 1.0;
/// … and at most this share of them by more than rounding in fp32 explains (in steps).
const PIXEL_SHARE_MAX: f64 = 0.005;
const PIXEL_STEP_NOISE: f64 = 0.01;
/// Fixture images are small and ours.
const IMAGE_PIXELS_MAX: u64 = 100_000_000;
/// Made by the fixture script from other tensors, as input only: no preprocessing gives them.
const INPUTS: [&str; 2] = ["rect.pixel_values", "decoder_input_ids"];
/// Of long sequences, full-size fixtures keep this many entries at each end.
const KEPT_AT_EACH_END: i64 = 8;
/// Stands for a generated id that the noise of the arithmetic decides, and is not compared; and for one that there is
/// not, because our text is shorter.
const UNDECIDED: i64 = -2;
const ABSENT: i64 = -1;

/// A fixture folder.
#[derive(Debug)]
pub struct Fixture {
    folder: PathBuf,
    meta: Meta,
    expected: SafetensorsFile,
}

#[derive(Debug, Deserialize)]
struct Meta {
    dtype: String,
    noise: BTreeMap<String, Noise>,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    first8_last8: BTreeSet<String>,
    /// What a model with tasks was asked, by the task's token.
    #[serde(default)]
    tasks: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default)]
    cases: BTreeMap<String, Case>,
    /// For each text that was written greedily and each of its rows, by how much the best token of each step was
    /// better than the second-best.
    #[serde(default)]
    greedy_margins: BTreeMap<String, Vec<Vec<f64>>>,
}

/// A prompt of a model that is asked questions.
#[derive(Debug, Deserialize)]
struct Case {
    question: String,
}

#[derive(Debug, Deserialize)]
struct Noise {
    max_abs: f64,
    max_abs_diff_sdpa: f64,
}

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

impl Fixture {
    /// Opens a fixture folder.
    ///
    /// # Errors
    /// When `meta.json` or `expected.safetensors` is missing or malformed.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("meta.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::file(&path, source))?;
        let meta = serde_json::from_str(&text).map_err(|error| ModelError::malformed(&path, error))?;
        let expected = SafetensorsFile::open(&folder.join("expected.safetensors"))?;
        Ok(Self { folder: folder.to_owned(), meta, expected })
    }

    /// The snapshot's folder.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshot")
    }

    /// The texts whose ids and embeddings are expected.
    pub(crate) fn texts(&self) -> &[String] {
        &self.meta.texts
    }

    /// The names of the cases, each with the question that is asked.
    pub(crate) fn questions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.meta.cases.iter().map(|(name, case)| (name.as_str(), case.question.as_str()))
    }

    /// The shape of an expected tensor, if there is one of that name.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.expected.shape(name)
    }

    /// An expected tensor that serves as an input, such as the reference's pixel values.
    pub(crate) fn input(&self, name: &str) -> Result<Tensor, ModelError> {
        self.expected.tensor(name)
    }

    /// Whether a tensor of that name is expected.
    pub(crate) fn expects(&self, name: &str) -> bool {
        self.expected.shape(name).is_some()
    }

    /// The task tokens whose ids are expected.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &str> {
        self.meta.tasks.keys().map(String::as_str)
    }

    /// The difference of two logits from which on two implementations agree which is greater.
    pub(crate) fn decisive_margin(&self) -> f64 {
        let noise = self.meta.noise.get("logits").map_or(0.0, |noise| noise.max_abs_diff_sdpa);
        2.0 * NOISE_FACTOR * noise
    }

    /// One row of generated ids in the length of those of that name; an entry that we do not have equals nothing.
    pub(crate) fn aligned_ids(&self, name: &str, mut ids: Vec<i64>) -> Result<Tensor, ModelError> {
        ids.resize(self.input(name)?.numel(), ABSENT);
        Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?)
    }

    /// In place of ids of that name which noise decides.
    pub(crate) fn undecided_ids(&self, name: &str) -> Result<Tensor, ModelError> {
        Ok(self.input(name)?.f_full_like(UNDECIDED as f64)?)
    }

    /// The fixture's images of those names, preprocessed.
    pub(crate) fn images(
        &self,
        names: &[&str],
        preprocessor: &Preprocessor,
    ) -> Result<Vec<Pixels>, ModelError> {
        names.iter().map(|name| preprocessor.apply(&self.image(name)?)).collect()
    }

    fn image(&self, name: &str) -> Result<crate::RgbImage, ModelError> {
        let path = self.folder.join("images").join(format!("{name}.png"));
        let bytes = std::fs::read(&path).map_err(|source| ModelError::file(&path, source))?;
        decode(&bytes, IMAGE_PIXELS_MAX).map_err(|error| ModelError::malformed(&path, error))
    }

    /// How many entries along its second dimension can be compared of a tensor that greedy writing gave: after a step
    /// whose two best tokens differ by no more than errors may, the rest may be another text.
    fn decided(&self, name: &str, expected: &Tensor) -> Result<Option<i64>, ModelError> {
        let Some((text, tensor)) = name.rsplit_once('.') else { return Ok(None) };
        let Some(rows) = self.meta.greedy_margins.get(text) else { return Ok(None) };
        let logits = ["step_logits", "step_logits_top"].map(|tensor| format!("{text}.{tensor}"));
        let Some(logits) = logits.iter().find(|name| self.shape(name).is_some()) else { return Ok(None) };
        let scale = f64::try_from(self.input(logits)?.f_to_kind(Kind::Double)?.f_abs()?.f_max()?)?;
        let tolerance = self.tolerance(logits, scale);
        let undecided =
            |row: &Vec<f64>| row.len() - row.iter().take_while(|&&margin| margin > tolerance).count();
        let undecided = rows.iter().map(undecided).max().unwrap_or(0);
        let undecided = if tensor == "ids" { undecided } else { undecided.saturating_sub(1) };
        let length = expected.size().get(1).copied().unwrap_or(0);
        Ok(Some((length - i64::try_from(undecided).unwrap_or(0)).max(0)))
    }

    /// The largest allowed error of a tensor whose largest expected magnitude is `scale`.
    fn tolerance(&self, name: &str, scale: f64) -> f64 {
        let noise_of = |name: &str| self.meta.noise.get(name).map_or(0.0, |noise| noise.max_abs_diff_sdpa);
        // The slope of the sigmoid that makes `probs` of the logits is at most a quarter.
        let absolute = if name == "probs" { noise_of("logits_per_image") / 4.0 } else { noise_of(name) };
        if self.meta.dtype == "float32" {
            return (FP32_TOLERANCE * scale).max(NOISE_FACTOR * absolute);
        }
        // Intermediate tensors have no measured noise of their own.
        let relative =
            |noise: &Noise| if noise.max_abs > 0.0 { noise.max_abs_diff_sdpa / noise.max_abs } else { 0.0 };
        let largest = self.meta.noise.values().map(relative).fold(0.0, f64::max);
        NOISE_FACTOR * absolute.max(largest * scale)
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
    let dtype = match fixture.meta.dtype.as_str() {
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
    let stream = Stream::new(model.loaded().placement.device)?;
    let _current = stream.enter()?;
    // A fixture of odd shapes makes libtorch throw.
    let outputs = catch_unwind(AssertUnwindSafe(|| model.reproduce(&fixture)))
        .map_err(|_| ModelError::malformed(folder, "libtorch refused the fixture's tensors"))??;
    let mut names = fixture.expected.names();
    names.retain(|name| !INPUTS.contains(&name.as_str()));
    names.sort();
    let mut comparisons = Vec::new();
    for name in &names {
        match outputs.get(name) {
            Some(ours) => comparisons.extend(compare(&fixture, name, ours, &model.loaded().preprocessor)?),
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
    if fixture.meta.first8_last8.contains(name) {
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
