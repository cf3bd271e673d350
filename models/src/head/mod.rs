//! Trained heads on a frozen backbone: features → label logits; and how they are trained.

mod dropout;
mod feature_dataset;
mod features;
mod file;
mod network;
mod task_head;
mod train;

pub use feature_dataset::FeatureDataset;
pub use features::{FeatureKind, FeatureSource};
pub use file::{SNAPSHOT_NOTE, check_head_folder, head_snapshot};
pub use train::{Epoch, HeadKind, HeadTraining, TrainedHead, train_head};

pub(crate) use network::{Features, Head};
pub(crate) use task_head::TaskHead;
