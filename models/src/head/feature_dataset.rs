//! The features of many images with their labels, held in memory on the CPU.

use tch::{Device, Kind, Tensor};

use super::Features;
use crate::ModelError;

/// What a head is trained and judged on.
#[derive(Debug)]
pub struct FeatureDataset {
    /// [images, rows, width]: the CLS token, then patch tokens or their mean.
    values: Tensor,
    /// \[images\].
    labels: Tensor,
    /// The same as numbers.
    classes: Vec<usize>,
}

impl FeatureDataset {
    /// `values` are the features of one image after the other, of `shape` each: [rows, width]. There is one label for
    /// each.
    ///
    /// # Errors
    /// When the numbers do not fit each other.
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

    /// How wide a token is.
    pub(super) fn width(&self) -> i64 {
        self.values.size()[2]
    }

    /// The label of each image.
    pub(super) fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Some of the images, with their labels, on a device.
    pub(super) fn batch(&self, images: &Tensor, device: Device) -> (Features, Tensor) {
        let values = self.values.index_select(0, images).to_device(device);
        let rows = values.size()[1];
        let features = Features { cls: values.select(1, 0), patches: values.narrow(1, 1, rows - 1) };
        (features, self.labels.index_select(0, images).to_device(device))
    }
}

/// Positions of images as [`FeatureDataset::batch`] takes them.
pub(super) fn positions(images: &[usize]) -> Tensor {
    let numbers: Vec<i64> = images.iter().map(|&image| i64::try_from(image).unwrap_or(0)).collect();
    Tensor::from_slice(&numbers).to_kind(Kind::Int64)
}
