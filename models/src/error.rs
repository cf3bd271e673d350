//! Defines the errors of loading a snapshot and running a model.

use std::path::{Path, PathBuf};

use crate::libtorch::LibtorchError;

/// An error of loading or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the snapshot is missing or unreadable.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file of the snapshot has invalid content.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The defect in words.
        message: String,
    },
    /// Tensors are missing or have wrong shapes; all of them are named.
    #[error("{}: {} of the tensors do not fit the configuration:\n  {}", path.display(), faults.len(), faults.join("\n  "))]
    Weights {
        /// The snapshot folder, or the head's file.
        path: PathBuf,
        /// One line for each tensor.
        faults: Vec<String>,
    },
    /// A valid request for something that this model does not support.
    #[error("{0}")]
    Unsupported(String),
    /// A task that this model cannot answer as it is configured.
    #[error("task {task}: {message}")]
    Task {
        /// The task's name.
        task: String,
        /// The reason.
        message: String,
    },
    /// A task that was requested before it was prepared.
    #[error("the task was not prepared")]
    NotPrepared,
    /// The work was given up because its caller does not want it any more.
    #[error("the work is not wanted any more")]
    Abandoned,
    /// The device does not exist, or cannot be used.
    #[error("device {device}: {message}")]
    Device {
        /// The device as it was requested.
        device: String,
        /// The devices that are allowed, or the reason for the failure.
        message: String,
    },
    /// libtorch ran out of memory, which tch reported by a panic.
    #[error("{0}")]
    OutOfMemory(String),
    /// libtorch returned an error.
    #[error(transparent)]
    Libtorch(#[from] LibtorchError),
    /// libtorch returned an error through tch.
    #[error("libtorch: {}", first_line(.0))]
    Tensor(#[from] tch::TchError),
}

/// Returns the first line of libtorch's message, which is followed by a C++ backtrace.
fn first_line(error: &tch::TchError) -> String {
    let text = match error {
        tch::TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

/// The messages of libtorch when it is out of memory: those of CUDA's caching allocator and driver, of
/// cuBLAS, and of the CPU's allocator (two).
const OUT_OF_MEMORY: [&str; 4] =
    ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory"];

/// Returns whether a message of libtorch, from an error or a panic, says that it is out of memory.
pub fn is_out_of_memory(message: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|words| message.contains(words))
}

impl ModelError {
    /// Returns whether libtorch ran out of memory: the same work with fewer images may succeed.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::OutOfMemory(_) => true,
            Self::Libtorch(_) | Self::Tensor(_) => is_out_of_memory(&self.to_string()),
            _ => false,
        }
    }

    pub(crate) fn file(path: &Path, source: std::io::Error) -> Self {
        Self::File { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.to_owned(), message: message.to_string() }
    }
}
