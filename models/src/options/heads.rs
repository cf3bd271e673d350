//! Defines the options of every architecture that supports trained heads.

use super::spec::{OptionKind, OptionSpec};

/// The trained head for each task, a safetensors file in the snapshot's folder.
pub const HEADS: OptionSpec = OptionSpec {
    name: "heads",
    kind: OptionKind::TaskFiles,
    doc: "The trained head for each task, a safetensors file in the snapshot's folder.",
};

/// The number of passes with dropout of a head on each image, for an uncertainty. Beyond some tens of passes
/// the mean hardly changes, and each costs one run of the head; the backbone runs once in any case.
pub(crate) const MC_DROPOUT_PASSES: OptionSpec = OptionSpec::whole(
    "mc_dropout_passes",
    [0, 256],
    0,
    "How often a head that was trained with dropout runs with it on each image, for an uncertainty; 0: once, without.",
);
