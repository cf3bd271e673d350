//! Defines a task as a model sees it.

use std::path::PathBuf;

/// The part of a task that a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSpec {
    /// The task's name.
    pub task: String,
    /// The question about an image.
    pub question: String,
    /// The labels in the policy's order, each with its prompts (for zero-shot models).
    pub labels: Vec<(String, Vec<String>)>,
    /// The answer that stands for each label in a model that is asked the question, for instance `YES`.
    pub answers: Vec<String>,
    /// The file of the trained head, relative to the snapshot's folder (for backbones).
    pub head: Option<PathBuf>,
}

/// An identifier of one preparation of a task, so that a changed task can be prepared while requests still
/// use the old one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(pub u64);
