//! The registry's entry for an architecture: its name, options, capabilities and loader.

use serde_json::{Map, Value};

use crate::ModelError;
use crate::model::Model;
use crate::options::{ModelOptions, OptionFault, OptionSpec, OptionTable};
use crate::runtime::device::Placement;
use crate::snapshot::folder::Snapshot;

/// A function that loads a snapshot of one architecture onto a device.
pub type Load = fn(&Snapshot, &ModelOptions, Placement) -> Result<Box<dyn Model>, ModelError>;

/// A feature besides voting that the models of some architectures have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// The models are backbones: trained heads read their features, and they answer only the tasks that they
    /// have a head for.
    Heads,
    /// The models generate text.
    Generate,
}

/// An architecture: its name, the snapshots and options that it accepts, and its loader.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// The name in `ensemble.toml`.
    pub name: &'static str,
    /// The `model_type`s of `config.json` that it loads; empty if it needs no such file.
    pub model_types: &'static [&'static str],
    /// The features that its models have besides voting.
    pub capabilities: &'static [Capability],
    /// The options in `[models.NAME]` that it takes besides those common to all models.
    pub options: &'static [OptionSpec],
    /// The name prefixes of the tensors whose layers can multiply in fp8; empty if there are none.
    pub fp8: &'static [&'static str],
    /// The function that loads its snapshots.
    pub load: Load,
}

impl Architecture {
    /// Returns whether its models have this capability.
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// Reads the architecture's own options out of a model's table. Those at fault take their defaults and
    /// are returned as faults.
    pub fn read_options(&self, given: &Map<String, Value>) -> (OptionTable, Vec<OptionFault>) {
        OptionTable::read(self.options, given)
    }

    /// Returns whether some of its layers can multiply in fp8.
    pub fn has_fp8(&self) -> bool {
        !self.fp8.is_empty()
    }
}
