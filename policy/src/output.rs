//! The output of a model about one image.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

use crate::probability::{Logits, LogitsError};

/// The output of a model about one image for one task, as the model gave it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelOutput {
    /// Uncalibrated logits, one for each label. [`Self::logits`] checks them, since a model may have computed
    /// anything.
    #[serde(deserialize_with = "finite")]
    pub logits: Vec<f32>,
    /// The evidence beside them.
    pub evidence: Evidence,
}

/// The evidence that a model gives beside its logits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The objects found in the image, where the model looks for some; no decision depends on them.
    pub regions: Arc<[Region]>,
    /// The feature of the image, where the model is a head on a backbone: its CLS token after the final norm.
    /// Learned networks read it.
    pub feature: Option<Arc<[f32]>>,
    /// The disagreement of several passes with dropout, where there are several: their mutual information in
    /// nats. No decision depends on it.
    pub uncertainty: Option<f32>,
}

/// A part of an image, in pixels of the original: x to the right, y down, from the upper left corner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Region {
    /// The label of the content.
    pub label: String,
    /// Its outline.
    pub shape: Shape,
}

/// The outline of a region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Left, top, right, bottom.
    Box([f32; 4]),
    /// Four corners, each x and y.
    Quad([f32; 8]),
}

impl Shape {
    fn coordinates(&self) -> &[f32] {
        match self {
            Self::Box(coordinates) => coordinates,
            Self::Quad(coordinates) => coordinates,
        }
    }
}

impl From<Vec<f32>> for ModelOutput {
    fn from(logits: Vec<f32>) -> Self {
        Self { logits, evidence: Evidence::default() }
    }
}

impl ModelOutput {
    /// Returns the logits, one for each of `labels` labels.
    ///
    /// # Errors
    /// When there are more or fewer, none at all, or one is not finite.
    pub fn logits(&self, labels: usize) -> Result<Logits<'_>, LogitsError> {
        Logits::new(&self.logits, labels)
    }

    /// Returns whether it can be a vote on a question with `labels` labels, of a model whose features have
    /// `feature_length` numbers, where that is known: a logit for each label, and nothing that is not finite.
    pub fn fits(&self, labels: usize, feature_length: Option<usize>) -> bool {
        self.logits(labels).is_ok() && self.evidence.fits(feature_length)
    }
}

impl Evidence {
    fn fits(&self, feature_length: Option<usize>) -> bool {
        let mut coordinates = self.regions.iter().flat_map(|region| region.shape.coordinates());
        let feature_fits = self.feature.as_deref().is_none_or(|feature| {
            feature_length.is_none_or(|length| length == feature.len())
                && feature.iter().all(|number| number.is_finite())
        });
        feature_fits
            && self.uncertainty.is_none_or(f32::is_finite)
            && coordinates.all(|coordinate| coordinate.is_finite())
    }

    /// Returns the bytes that it takes beside its own size.
    pub fn heap_bytes(&self) -> usize {
        let labels: usize = self.regions.iter().map(|region| region.label.len()).sum();
        size_of_val(&*self.regions)
            + labels
            + self.feature.as_ref().map_or(0, |feature| size_of_val(&**feature))
    }
}

/// Deserializes logits, and refuses those that are empty or not finite: only usable outputs are stored.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    let logits = Vec::deserialize(deserializer)?;
    Logits::new(&logits, logits.len()).map_err(serde::de::Error::custom)?;
    Ok(logits)
}
