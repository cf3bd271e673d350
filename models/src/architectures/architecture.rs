//! An architecture as the registry knows it.

use crate::ModelError;
use crate::model::Model;
use crate::options::ModelOptions;
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;

/// Loads a snapshot of one architecture.
pub(crate) type Load = fn(&Snapshot, &ModelOptions, Placement) -> Result<Box<dyn Model>, ModelError>;

/// An architecture's name, what it accepts, and how it is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// As `ensemble.toml` calls it.
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it loads; none where it needs no such file.
    pub model_types: &'static [&'static str],
    /// The options of [`ModelOptions`] that only some architectures take, and this one does.
    pub options: &'static [&'static str],
    /// How the names of tensors begin that belong to layers whose products may be of fp8; none where it has no such
    /// layers.
    pub(crate) fp8: &'static [&'static str],
    /// Loads a snapshot of it.
    pub(crate) load: Load,
}

impl Architecture {
    /// Whether some of its layers can multiply in fp8.
    pub fn has_fp8(&self) -> bool {
        !self.fp8.is_empty()
    }
}
