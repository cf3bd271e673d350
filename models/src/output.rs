//! Converts tensors to the outputs of a model, one for each image.

use std::sync::Arc;

use concord_policy::{Evidence, ModelOutput};
use tch::{Kind, Tensor};

/// Returns the rows of logits [images, labels] as outputs.
pub(crate) fn outputs(logits: &Tensor) -> Result<Vec<ModelOutput>, tch::TchError> {
    Ok(rows(logits)?.into_iter().map(ModelOutput::from).collect())
}

/// Returns the rows of logits with the features [images, width] that they were computed from. Both are copied
/// to the CPU together, so that the GPU is waited for only once.
pub(crate) fn outputs_with_features(
    logits: &Tensor,
    features: &Tensor,
) -> Result<Vec<ModelOutput>, tch::TchError> {
    let labels = usize::try_from(logits.size().last().copied().unwrap_or_default()).unwrap_or_default();
    let both = Tensor::f_cat(&[logits, features], -1)?;
    let output = |mut row: Vec<f32>| {
        let feature = Some(Arc::from(row.split_off(labels)));
        ModelOutput { logits: row, evidence: Evidence { feature, ..Evidence::default() } }
    };
    Ok(rows(&both)?.into_iter().map(output).collect())
}

fn rows(values: &Tensor) -> Result<Vec<Vec<f32>>, tch::TchError> {
    Vec::try_from(&values.f_to_device_(tch::Device::Cpu, Kind::Float, false, false)?)
}
