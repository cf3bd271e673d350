//! TorchScript: a module that the user traced or scripted with `torch.jit`. The folder holds `model.pt`, and
//! the configuration describes its input and output; knows no other architecture.

mod options;

use std::collections::{BTreeMap, HashMap};

use concord_policy::ModelOutput;
use tch::{CModule, Kind, Tensor};

use crate::ModelError;
use crate::architectures::architecture::Architecture;
use crate::image::preprocess::{Pixels, Preprocessor, stack};
use crate::inspect::fixture::Fixture;
use crate::model::{LoadedModelInfo, Model};
use crate::options::ModelOptions;
use crate::output::outputs;
use crate::runtime::device::Placement;
use crate::snapshot::folder::{Snapshot, TORCHSCRIPT_FILE};
use crate::task::{TaskId, TaskSpec};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "torchscript",
    model_types: &[],
    capabilities: &[],
    options: &[options::INPUT, options::OUTPUT],
    fp8: &[],
    load,
};

/// The smallest probability whose logarithm is taken, because 0 has none.
const PROBABILITY_MIN: f64 = 1e-9;

/// Returns the preprocessor that the options describe.
///
/// # Errors
/// Fails when an option is out of its range.
pub(super) fn preprocessor(snapshot: &Snapshot, options: &ModelOptions) -> Result<Preprocessor, ModelError> {
    Preprocessor::of_input(&options::input_of(&options.own))
        .map_err(|message| ModelError::malformed(&snapshot.path(TORCHSCRIPT_FILE), message))
}

fn load(snapshot: &Snapshot, options: &ModelOptions, place: Placement) -> Result<Box<dyn Model>, ModelError> {
    let path = snapshot.path(TORCHSCRIPT_FILE);
    let preprocessor = preprocessor(snapshot, options)?;
    if !path.is_file() {
        return Err(ModelError::file(&path, std::io::ErrorKind::NotFound.into()));
    }
    let mut module = CModule::load_on_device(&path, place.device)?;
    module.f_set_eval()?;
    module.to(place.device, place.kind, false);
    let gives_probabilities = options.own.choice(&options::OUTPUT) == options::OUTPUTS[1];
    let tensors = module.named_parameters().unwrap_or_default();
    let parameters =
        tensors.iter().map(|(_, tensor)| i64::try_from(tensor.numel()).unwrap_or(i64::MAX)).sum();
    let info = LoadedModelInfo { preprocessor, parameters, placement: place };
    Ok(Box::new(TorchScript { module, info, gives_probabilities, labels: HashMap::new() }))
}

/// A loaded module and the number of labels of the prepared tasks.
#[derive(Debug)]
struct TorchScript {
    module: CModule,
    info: LoadedModelInfo,
    /// True if the module outputs probabilities, whose logarithms serve as logits.
    gives_probabilities: bool,
    /// The number of labels of each prepared task.
    labels: HashMap<TaskId, usize>,
}

impl Model for TorchScript {
    fn info(&self) -> &LoadedModelInfo {
        &self.info
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        self.labels.insert(id, task.labels.len());
        Ok(())
    }

    fn forget(&mut self, id: TaskId) {
        self.labels.remove(&id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        let labels = *self.labels.get(&id).ok_or(ModelError::NotPrepared)?;
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let pixels = stack(images, self.info.placement.device).to_kind(self.info.placement.kind);
        let output = tch::no_grad(|| self.module.forward_ts(&[pixels]))?;
        let expected = [images.len() as i64, labels as i64];
        if output.size() != expected {
            let found = output.size();
            let message =
                format!("the module gives {found:?}, but {expected:?} were expected: a value for each label");
            return Err(ModelError::Unsupported(message));
        }
        let output = output.to_kind(Kind::Float);
        Ok(outputs(&if self.gives_probabilities { output.clamp_min(PROBABILITY_MIN).log() } else { output })?)
    }

    fn parity_outputs(&self, _: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        Err(ModelError::Unsupported("a TorchScript module has no reference but itself".to_owned()))
    }
}
