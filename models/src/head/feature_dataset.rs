//! Holds the features of many images and their labels in memory on the CPU.

use tch::{Device, Kind, Tensor};

use super::Features;
use crate::ModelError;

/// The data that a head is trained and evaluated on.
#[derive(Debug)]
pub struct FeatureDataset {
    /// The features [images, rows, width]: the CLS token, then patch tokens or their mean.
    values: Tensor,
    /// The labels as a tensor, \[images\].
    labels: Tensor,
    /// The labels as numbers.
    classes: Vec<usize>,
}

impl FeatureDataset {
    /// Builds a data set from `values`, the features of one image after the other, of `shape` [rows, width]
    /// each, and one label for each image.
    ///
    /// # Errors
    /// Fails when the numbers of values and labels do not match.
    pub fn new(values: &[f32], shape: [usize; 2], labels: Vec<usize>) -> Result<Self, ModelError> {
        let [rows, width] = shape.map(|side| i64::try_from(side).unwrap_or(i64::MAX));
        let images = i64::try_from(labels.len()).unwrap_or(i64::MAX);
        let numbers: Vec<i64> = labels.iter().map(|&label| i64::try_from(label).unwrap_or(0)).collect();
        Ok(Self {
            values: Tensor::f_from_slice(values)?.f_view([images, rows, width])?,
            labels: Tensor::f_from_slice(&numbers)?,
            classes: labels,
        })
    }

    /// Returns the width of a token.
    pub(super) fn width(&self) -> i64 {
        self.values.size()[2]
    }

    /// Returns the label of each image.
    pub(super) fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Copies the images at the given positions, with their labels, to a device.
    pub(super) fn batch(&self, images: &Tensor, device: Device) -> (Features, Tensor) {
        let values = self.values.index_select(0, images).to_device(device);
        let rows = values.size()[1];
        let features = Features { cls: values.select(1, 0), patches: values.narrow(1, 1, rows - 1) };
        (features, self.labels.index_select(0, images).to_device(device))
    }
}

/// Returns positions of images as the tensor that [`FeatureDataset::batch`] takes.
pub(super) fn positions(images: &[usize]) -> Tensor {
    let numbers: Vec<i64> = images.iter().map(|&image| i64::try_from(image).unwrap_or(0)).collect();
    Tensor::from_slice(&numbers).to_kind(Kind::Int64)
}
