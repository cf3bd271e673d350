//! A parity fixture: a snapshot with the tensors that the reference implementation computed from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::image::decode::decode;
use crate::image::limits::ImageLimits;
use crate::image::preprocess::{Pixels, Preprocessor};
use crate::snapshot::weights::SafetensorsFile;

/// The allowed error in units of the reference's noise. In half precision the reference differs from itself
/// by its choice of attention kernel (`noise`); two implementations that are each that far from the exact
/// result may differ by twice as much.
const NOISE_FACTOR: f64 = 2.0;
/// The largest number of pixels of a fixture's image. The project makes its fixtures itself, from small
/// images.
const IMAGE_PIXELS_MAX: u64 = 100_000_000;
/// The largest allowed error in fp32, as a share of the largest magnitude in the expected tensor.
const FP32_TOLERANCE: f64 = 1e-4;
/// The marker of a generated id that the noise of the arithmetic decides, so that it is not compared.
pub(crate) const UNDECIDED: i64 = -2;
/// The marker of an id that is missing because our text is shorter.
const ABSENT: i64 = -1;

/// A fixture folder.
#[derive(Debug)]
pub struct Fixture {
    folder: PathBuf,
    meta: Meta,
    expected: SafetensorsFile,
}

/// A fixture's `meta.json`.
#[derive(Debug, Deserialize)]
struct Meta {
    dtype: String,
    noise: BTreeMap<String, Noise>,
    #[serde(default)]
    texts: Vec<String>,
    #[serde(default)]
    first8_last8: BTreeSet<String>,
    /// The tasks of a model that has task tokens, by their token.
    #[serde(default)]
    tasks: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default)]
    cases: BTreeMap<String, Case>,
    /// The margins by which the best token of each step was better than the second-best, for each text that
    /// was generated greedily and each of its rows.
    #[serde(default)]
    greedy_margins: BTreeMap<String, Vec<Vec<f64>>>,
}

/// A prompt of a model that answers questions.
#[derive(Debug, Deserialize)]
struct Case {
    question: String,
}

/// The noise of a tensor in the reference: its largest magnitude, and the largest difference between two
/// attention kernels.
#[derive(Debug, Deserialize)]
struct Noise {
    max_abs: f64,
    max_abs_diff_sdpa: f64,
}

impl Fixture {
    /// Opens a fixture folder.
    ///
    /// # Errors
    /// Returns an error if `meta.json` or `expected.safetensors` is missing or malformed.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("meta.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::file(&path, source))?;
        let meta = serde_json::from_str(&text).map_err(|error| ModelError::malformed(&path, error))?;
        let expected = SafetensorsFile::open(&folder.join("expected.safetensors"))?;
        Ok(Self { folder: folder.to_owned(), meta, expected })
    }

    /// Returns the snapshot's folder.
    pub fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshot")
    }

    /// Returns the texts whose ids and embeddings are expected.
    pub(crate) fn texts(&self) -> &[String] {
        &self.meta.texts
    }

    /// Returns the names of the cases, each with its question.
    pub(crate) fn questions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.meta.cases.iter().map(|(name, case)| (name.as_str(), case.question.as_str()))
    }

    /// Returns the shape of an expected tensor, if there is one with that name.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.expected.shape(name)
    }

    /// Returns an expected tensor that serves as an input, such as the reference's pixel values.
    pub(crate) fn input(&self, name: &str) -> Result<Tensor, ModelError> {
        self.expected.tensor(name)
    }

    /// Returns whether a tensor with that name is expected.
    pub(crate) fn expects(&self, name: &str) -> bool {
        self.expected.shape(name).is_some()
    }

    /// Returns the task tokens whose ids are expected.
    pub(crate) fn tasks(&self) -> impl Iterator<Item = &str> {
        self.meta.tasks.keys().map(String::as_str)
    }

    /// Returns the difference of two logits above which two implementations must agree on which is greater.
    pub(crate) fn decisive_margin(&self) -> f64 {
        let noise = self.meta.noise.get("logits").map_or(0.0, |noise| noise.max_abs_diff_sdpa);
        2.0 * NOISE_FACTOR * noise
    }

    /// Returns generated ids as one row, [1, length], of the same length as the expected ids with that name.
    /// The entries that our text lacks equal no id.
    pub(crate) fn aligned_ids(&self, name: &str, mut ids: Vec<i64>) -> Result<Tensor, ModelError> {
        ids.resize(self.input(name)?.numel(), ABSENT);
        Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?)
    }

    /// Returns the markers that replace the ids with that name if noise decides them.
    pub(crate) fn undecided_ids(&self, name: &str) -> Result<Tensor, ModelError> {
        Ok(self.input(name)?.f_full_like(UNDECIDED as f64)?)
    }

    /// Returns the fixture's images with those names, preprocessed.
    pub(crate) fn images(
        &self,
        names: &[&str],
        preprocessor: &Preprocessor,
    ) -> Result<Vec<Pixels>, ModelError> {
        names.iter().map(|name| preprocessor.apply(&self.image(name)?)).collect()
    }

    /// Returns the names of all expected tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        self.expected.names()
    }

    /// Returns the number format that the tensors were computed in, by its name in PyTorch.
    pub(crate) fn dtype(&self) -> &str {
        &self.meta.dtype
    }

    /// Returns whether the fixture keeps only the first and last entries of that tensor.
    pub(crate) fn keeps_ends_of(&self, name: &str) -> bool {
        self.meta.first8_last8.contains(name)
    }

    fn image(&self, name: &str) -> Result<crate::RgbImage, ModelError> {
        let path = self.folder.join("images").join(format!("{name}.png"));
        let bytes = std::fs::read(&path).map_err(|source| ModelError::file(&path, source))?;
        decode(&bytes, ImageLimits::with_max_pixels(IMAGE_PIXELS_MAX))
            .map_err(|error| ModelError::malformed(&path, error))
    }

    /// Returns the number of entries along the second dimension that can be compared, for a tensor of greedy
    /// generation. After a step whose two best tokens differ by no more than the allowed error, the rest of
    /// the text may differ.
    pub(crate) fn decided(&self, name: &str, expected: &Tensor) -> Result<Option<i64>, ModelError> {
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

    /// Returns the largest allowed error of a tensor whose largest expected magnitude is `scale`.
    pub(crate) fn tolerance(&self, name: &str, scale: f64) -> f64 {
        let noise_of = |name: &str| self.meta.noise.get(name).map_or(0.0, |noise| noise.max_abs_diff_sdpa);
        // `probs` is the sigmoid of the logits, whose slope is at most a quarter.
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
