//! The list of architectures, and the functions that load a model of any of them.

use std::path::Path;
use std::sync::PoisonError;

use tch::{Device, Kind};

use super::architecture::{Architecture, Capability};
use super::{dinov3, florence2, molmo2, siglip2, torchscript};
use crate::ModelError;
use crate::libtorch::{Stream, compute_capability, release_unused_memory};
use crate::model::Model;
use crate::options::ModelOptions;
use crate::runtime::device::{Placement, device_name, parse_device, parse_dtype};
use crate::runtime::rng::RNG;
use crate::snapshot::folder::Snapshot;
use crate::snapshot::weights::WeightSource;

/// The compute capability of the oldest GPUs whose tensor cores multiply fp8 (Ada, 8.9).
const FP8_CAPABILITY_MIN: u32 = 89;

/// The list of all architectures. A new one takes a folder beside this file and a line here.
pub const ARCHITECTURES: &[Architecture] = &[
    dinov3::ARCHITECTURE,
    siglip2::ARCHITECTURE,
    florence2::ARCHITECTURE,
    molmo2::ARCHITECTURE,
    torchscript::ARCHITECTURE,
    #[cfg(test)]
    super::brightness::ARCHITECTURE,
];

/// Returns the names of the architectures whose models have this capability.
pub fn architectures_with(capability: Capability) -> Vec<&'static str> {
    ARCHITECTURES.iter().filter(|one| one.can(capability)).map(|one| one.name).collect()
}

impl Architecture {
    /// Returns the architecture with this name in `ensemble.toml`.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    /// Returns the architecture that loads a `config.json` with this `model_type`.
    pub fn by_model_type(model_type: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.model_types.contains(&model_type))
    }
}

/// Loads the model that `options` describe. A relative snapshot path starts at `base`.
///
/// # Errors
/// Fails when the device does not exist, or the snapshot is of another architecture or does not load.
pub fn load_model(options: &ModelOptions, base: &Path) -> Result<Box<dyn Model>, ModelError> {
    load(options, &Snapshot::of(base, &options.snapshot)?)
}

/// Loads the same model with random weights, made on the device, for benchmarks: the snapshot needs no weight
/// files.
///
/// # Errors
/// Fails when the device does not exist, the snapshot is of another architecture, or its configuration is
/// faulty.
pub fn load_random(options: &ModelOptions, base: &Path, seed: i64) -> Result<Box<dyn Model>, ModelError> {
    let snapshot = Snapshot::of(base, &options.snapshot)?;
    load(options, &snapshot.with_weights(WeightSource::Random { seed }))
}

fn load(options: &ModelOptions, snapshot: &Snapshot) -> Result<Box<dyn Model>, ModelError> {
    let architecture = Architecture::by_name(&options.architecture)
        .ok_or_else(|| ModelError::Unsupported(format!("unknown architecture {:?}", options.architecture)))?;
    if !architecture.model_types.is_empty() {
        check_model_type(architecture, snapshot)?;
    }
    let placement = Placement { device: parse_device(&options.device)?, kind: parse_dtype(&options.dtype)? };
    check_placement(architecture, placement)?;
    let making = snapshot.is_random().then(|| RNG.lock().unwrap_or_else(PoisonError::into_inner));
    let model = (architecture.load)(snapshot, options, placement)?;
    drop(making);
    // Weights that were concatenated or made on this thread's stream are read on another, which does not wait
    // for it. Only the stream is synchronized: the whole device must not be while another model records a
    // graph on it.
    Stream::current(placement.device)?.synchronize()?;
    release_unused_memory(placement.device);
    Ok(model)
}

fn check_model_type(architecture: &Architecture, snapshot: &Snapshot) -> Result<(), ModelError> {
    let model_type = snapshot.model_type()?;
    if architecture.model_types.contains(&model_type.as_str()) {
        return Ok(());
    }
    let expected = architecture.model_types.join(" or ");
    let message =
        format!("model_type is {model_type:?}; architecture {} loads {expected}", architecture.name);
    Err(ModelError::malformed(&snapshot.path("config.json"), message))
}

/// Checks that a model in this number format can run on this device: fp8 needs an architecture that has it
/// and a GPU that multiplies it.
///
/// # Errors
/// Fails when it cannot; the message says what to choose.
pub(crate) fn check_placement(architecture: &Architecture, place: Placement) -> Result<(), ModelError> {
    if place.kind != Kind::Float8e4m3fn {
        return Ok(());
    }
    if !architecture.has_fp8() {
        return Err(ModelError::Unsupported(format!(
            "dtype = \"fp8\" is not for architecture {}: choose \"bf16\"",
            architecture.name
        )));
    }
    let can = match place.device {
        Device::Cuda(index) => compute_capability(index)? >= FP8_CAPABILITY_MIN,
        _ => false,
    };
    if can {
        return Ok(());
    }
    Err(ModelError::Unsupported(format!(
        "dtype = \"fp8\" needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and this model is on {}: \
         choose \"bf16\"",
        device_name(place.device)
    )))
}
