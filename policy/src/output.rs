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
}

impl Evidence {
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
