//! Runs a task's head, once or in several passes with dropout.

use std::path::Path;

use concord_policy::ModelOutput;
use tch::{Device, Kind};

use super::dropout::McDropout;
use super::file::dropout_of;
use super::{Features, Head};
use crate::ModelError;
use crate::output::outputs_with_features;
use crate::runtime::device::Placement;
use crate::task::TaskSpec;

/// A task's head, with its dropout where it runs with it.
#[derive(Debug)]
pub(crate) struct TaskHead {
    head: Head,
    dropout: Option<McDropout>,
}

impl TaskHead {
    /// Loads the head that the task names from `folder`, for a backbone of this width. It runs in the given
    /// number of passes with dropout, or once without dropout where there are none.
    ///
    /// # Errors
    /// Fails when there is no head for the task, or when it was not trained for the task's labels, or not
    /// with dropout.
    pub(crate) fn load(
        folder: &Path,
        task: &TaskSpec,
        hidden: i64,
        passes: usize,
        place: Placement,
    ) -> Result<Self, ModelError> {
        let task_error = |message: String| ModelError::Task { task: task.task.clone(), message };
        let file =
            task.head.as_ref().ok_or_else(|| task_error("this model has no head for it".to_owned()))?;
        let path = folder.join(file);
        let labels: Vec<&str> = task.labels.iter().map(|(label, _)| label.as_str()).collect();
        // In fp32: the head costs nothing compared to the backbone, and half precision would round its logits
        // to tenths.
        let head = Head::load(&path, hidden, &labels, Placement { kind: Kind::Float, ..place })?;
        let asked = Self::of(head, if passes > 0 { dropout_of(&path)? } else { 0.0 }, passes, place.device);
        if passes > 0 && asked.dropout.is_none() {
            return Err(task_error(format!(
                "mc_dropout_passes = {passes} needs a head that was trained with dropout, and {} was not: train one with \
                 concord head train --kind mlp, or set mc_dropout_passes = 0",
                file.display()
            )));
        }
        Ok(asked)
    }

    /// Wraps a head that was trained with this rate of dropout, to run in the given number of passes with it;
    /// without dropout, where it has no units to drop or there are no passes.
    pub(super) fn of(head: Head, rate: f64, passes: usize, device: Device) -> Self {
        let has_dropout = passes > 0 && rate > 0.0 && !head.hidden_widths().is_empty();
        let dropout = has_dropout.then(|| McDropout::new(&head, rate, passes, device));
        Self { head, dropout }
    }

    /// Returns the output for each image, from features in fp32.
    pub(crate) fn scores(&self, features: &Features) -> Result<Vec<ModelOutput>, ModelError> {
        Ok(match &self.dropout {
            Some(dropout) => dropout.scores(&self.head, features)?,
            None => outputs_with_features(&self.head.forward(features), &features.cls)?,
        })
    }
}
