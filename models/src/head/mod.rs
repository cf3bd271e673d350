//! Runs and trains heads on a frozen backbone, which map features to label logits; knows no backbone's
//! architecture.

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
