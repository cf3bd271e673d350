//! An architecture as the registry knows it.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::model::Model;
use crate::options::{ModelOptions, OptionFault, OptionSpec, OptionTable};
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;

/// Loads a snapshot of one architecture.
pub type Load = fn(&Snapshot, &ModelOptions, Placement) -> Result<Box<dyn Model>, ModelError>;

/// Something that the models of some architectures can do besides voting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// They are backbones: trained heads read their features, and they answer only the tasks that they have a head for.
    Heads,
    /// They generate text.
    Generate,
}

/// An architecture's name, what it accepts, and how it is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// As `ensemble.toml` calls it.
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it loads; none where it needs no such file.
    pub model_types: &'static [&'static str],
    /// What its models can do besides voting.
    pub capabilities: &'static [Capability],
    /// The options that it takes in `[models.NAME]` besides those of every model.
    pub options: &'static [OptionSpec],
    /// The beginnings of the names of tensors whose layers can multiply in fp8; none if there are no such layers.
    pub fp8: &'static [&'static str],
    /// Loads a snapshot of it.
    pub load: Load,
}

impl Architecture {
    /// Returns whether its models can do this.
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Reads the options of its own out of a model's table; those that are at fault have their defaults.
    pub fn read_options(&self, given: &Map<String, Value>) -> (OptionTable, Vec<OptionFault>) {
        OptionTable::read(self.options, given)
    }

    /// Whether some of its layers can multiply in fp8.
    pub fn has_fp8(&self) -> bool {
        !self.fp8.is_empty()
    }
}
