//! What a model says about one image.

use concord_policy::Region;
use tch::{Kind, Tensor};

/// What a model says about one image for one task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// Uncalibrated, one for each label.
    pub logits: Vec<f32>,
    /// What was found in the image, where the model looks for things.
    pub regions: Vec<Region>,
    /// What the backbone made of the image, where the model is a head on one: its CLS token after the final norm.
    pub feature: Option<Vec<f32>>,
    /// How much passes with dropout differ in their answers, where there are several: their mutual information in nats.
    pub uncertainty: Option<f32>,
}

impl From<Vec<f32>> for Scores {
    fn from(logits: Vec<f32>) -> Self {
        Self { logits, ..Self::default() }
    }
}

/// The logits [images, labels] as the answers that they are.
pub(crate) fn scores(logits: &Tensor) -> Result<Vec<Scores>, tch::TchError> {
    Ok(rows(logits)?.into_iter().map(Scores::from).collect())
}

/// The same with what they were made of, [images, width]: copied to the CPU together, as a GPU is waited for once then.
pub(crate) fn scores_with_features(logits: &Tensor, features: &Tensor) -> Result<Vec<Scores>, tch::TchError> {
    let labels = usize::try_from(logits.size().last().copied().unwrap_or_default()).unwrap_or_default();
    let both = Tensor::f_cat(&[logits, features], -1)?;
    let scores = |mut row: Vec<f32>| {
        let feature = Some(row.split_off(labels));
        Scores { feature, ..Scores::from(row) }
    };
    Ok(rows(&both)?.into_iter().map(scores).collect())
}

fn rows(values: &Tensor) -> Result<Vec<Vec<f32>>, tch::TchError> {
    Vec::try_from(&values.f_to_device_(tch::Device::Cpu, Kind::Float, false, false)?)
}
