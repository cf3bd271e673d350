//! A test-only architecture that votes by the brightness of an image; knows no other
//! architecture.
//!
//! Besides this folder it needs what every architecture needs: a line in the registry, a fixture (which its
//! tests make) and, once it is for users, a row in `docs/MODELS.md`.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use concord_policy::ModelOutput;
use serde::Deserialize;
use tch::{Kind, Tensor};

use super::architecture::Architecture;
use crate::ModelError;
use crate::image::preprocess::{Pixels, Preprocessor, stack};
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::options::{ModelOptions, OptionSpec};
use crate::output::outputs;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;
use crate::task::{TaskId, TaskSpec};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "brightness",
    model_types: &["brightness"],
    capabilities: &[],
    options: &[GAIN],
    fp8: &[],
    load,
};

/// The architecture's own option, which scales the logits.
const GAIN: OptionSpec = OptionSpec::whole("gain", [1, 100], 1, "The factor of the logits.");

/// The contents of `config.json`.
#[derive(Debug, Deserialize)]
struct Config {
    threshold: f64,
}

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    let config: Config = snapshot.json("config.json")?;
    let mut weights = snapshot.weights(place)?;
    let slope = weights.tensor("slope", &[1]);
    let info = LoadedModelInfo {
        preprocessor: Preprocessor::load(snapshot)?,
        parameters: weights.finish()?,
        placement: place,
    };
    let gain = options.own.whole(&GAIN) as f64;
    Ok(Box::new(Brightness { info, slope, gain, threshold: config.threshold, tasks: BTreeSet::new() }))
}

/// A loaded model, whose logits are linear in the mean of the pixels.
#[derive(Debug)]
struct Brightness {
    info: LoadedModelInfo,
    slope: Tensor,
    gain: f64,
    threshold: f64,
    tasks: BTreeSet<TaskId>,
}

impl Brightness {
    /// Returns the logits [images, 2], dark and then bright, of pixels [images, 3, height, width].
    fn logits(&self, pixels: &Tensor) -> Tensor {
        let mean = pixels.mean_dim([1_i64, 2, 3].as_slice(), true, Kind::Float).view([-1, 1]);
        let bright = (mean - self.threshold) * &self.slope * self.gain;
        Tensor::cat(&[&-&bright, &bright], 1)
    }
}

impl Model for Brightness {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, _: &TaskSpec) -> Result<(), ModelError> {
        self.tasks.insert(id);
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.tasks.remove(&id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        if !self.tasks.contains(&id) {
            return Err(ModelError::NotPrepared);
        }
        Ok(outputs(&self.logits(&stack(images, self.info.placement.device)))?)
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let images = fixture.images(&["grey"], &self.info.preprocessor)?;
        let pixels = stack(&images.iter().collect::<Vec<_>>(), self.info.placement.device);
        let logits = self.logits(&pixels);
        Ok(BTreeMap::from([("pixel_values".to_owned(), pixels), ("logits".to_owned(), logits)]))
    }
}
