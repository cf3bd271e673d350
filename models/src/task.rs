//! A task as models know it.

use std::path::PathBuf;

/// A task as a model needs to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// The task's name.
    pub task: String,
    /// The question about an image.
    pub question: String,
    /// The labels in the policy's order, each with its prompts (for zero-shot models).
    pub labels: Vec<(String, Vec<String>)>,
    /// For each label what a model that is asked the question would answer, for instance `YES`.
    pub answers: Vec<String>,
    /// The file of the trained head, relative to the snapshot's folder (for backbones).
    pub head: Option<PathBuf>,
}

/// Names one preparation of a task, so that a changed task can be made ready while requests still use the old one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);
