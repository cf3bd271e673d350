//! What can go wrong between a snapshot folder and a model's answer.

use std::path::{Path, PathBuf};

use crate::libtorch::LibtorchError;

/// A model that cannot be loaded or asked.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the snapshot is missing or unreadable.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of the snapshot does not say what it should.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// Tensors are missing or have other shapes; all of them are named.
    #[error("{}: {} of the tensors do not fit the configuration:\n  {}", path.display(), faults.len(), faults.join("\n  "))]
    Weights {
        /// The snapshot folder, or the head's file.
        path: PathBuf,
        /// One line for each tensor.
        faults: Vec<String>,
    },
    /// A valid request for something that this model does not do.
    #[error("{0}")]
    Unsupported(String),
    /// A task that this model cannot answer as it is configured.
    #[error("task {task}: {message}")]
    Task {
        /// The task's name.
        task: String,
        /// What is missing or wrong.
        message: String,
    },
    /// A task that was asked for before it was prepared.
    #[error("the task was not prepared")]
    NotPrepared,
    /// The device does not exist or refused.
    #[error("device {device}: {message}")]
    Device {
        /// As it was asked for.
        device: String,
        /// What would be allowed.
        message: String,
    },
    /// libtorch had no memory left, and said so by a panic of tch's.
    #[error("{0}")]
    OutOfMemory(String),
    /// libtorch refused.
    #[error(transparent)]
    Libtorch(#[from] LibtorchError),
    /// libtorch refused, by way of tch.
    #[error("libtorch: {}", first_line(.0))]
    Tensor(#[from] tch::TchError),
}

/// libtorch appends its C++ backtrace to what it says.
fn first_line(error: &tch::TchError) -> String {
    let text = match error {
        tch::TchError::Torch(text) => text.clone(),
        other => other.to_string(),
    };
    text.lines().next().unwrap_or_default().to_owned()
}

/// How libtorch says that there is no memory left: CUDA's caching allocator and driver, cuBLAS, and the CPU's allocator
/// (twice).
const OUT_OF_MEMORY: [&str; 4] =
    ["out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory"];

/// Whether a message of libtorch, by error or by panic, says that there is no memory left.
pub fn is_out_of_memory(message: &str) -> bool {
    OUT_OF_MEMORY.iter().any(|words| message.contains(words))
}

impl ModelError {
    /// Whether libtorch had no memory left: the same with fewer images may succeed.
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
