//! Trained heads on a frozen backbone: features → label logits; and how they are trained.

mod asked;
mod dropout;
mod file;
mod network;
mod set;
mod source;
mod train;

pub use file::{SNAPSHOT_NOTE, check_head_folder, head_snapshot};
pub use set::FeatureSet;
pub use source::{FeatureKind, FeatureSource};
pub use train::{Epoch, HeadKind, HeadTraining, TrainedHead, train_head};

pub(crate) use asked::TaskHead;
pub(crate) use network::{Features, Head};
