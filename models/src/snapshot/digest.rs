//! A digest of everything that a model's output depends on: the same on every machine that has the same
//! files.

use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::snapshot::folder::Snapshot;

/// The extensions of a snapshot's configurations, vocabularies and chat templates.
const SMALL_FILES: [&str; 4] = ["jinja", "json", "model", "txt"];

/// Returns the digest of a snapshot as it is configured; a relative folder starts at `base`. It covers the
/// weights and every file that configures them, by name and content. It does not cover heads, see
/// [`head_digest`]; random weights have the same digest wherever the preset's files are.
///
/// # Errors
/// Returns an error if a file cannot be read, or if there are no weights.
pub fn snapshot_digest(base: &Path, snapshot: &Path) -> Result<[u8; 32], ModelError> {
    let snapshot = Snapshot::of(base, snapshot)?;
    let folder = snapshot.folder();
    let mut files: Vec<PathBuf> = snapshot.weight_files()?;
    let entries = std::fs::read_dir(folder).map_err(|source| ModelError::file(folder, source))?;
    for entry in entries {
        let path = entry.map_err(|source| ModelError::file(folder, source))?.path();
        let is_small =
            path.extension().is_some_and(|ending| SMALL_FILES.iter().any(|&small| ending == small));
        if is_small && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for path in files {
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hasher.update(&file_digest(&path)?);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// Returns the digest of a head's file; a relative path starts at the snapshot's folder, as in the
/// configuration.
///
/// # Errors
/// Returns an error if the file cannot be read.
pub fn head_digest(folder: &Path, head: &Path) -> Result<[u8; 32], ModelError> {
    file_digest(&folder.join(head))
}

/// Returns the BLAKE3 digest of a file.
fn file_digest(path: &Path) -> Result<[u8; 32], ModelError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).map_err(|source| ModelError::file(path, source))?;
    Ok(*hasher.finalize().as_bytes())
}
