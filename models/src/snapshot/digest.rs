//! What a model's output depends on, as a digest: the same on every machine that has the same files.

use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::snapshot::folder::Snapshot;

/// What a snapshot's configurations, vocabularies and the like end in.
const SMALL_FILES: [&str; 4] = ["jinja", "json", "model", "txt"];

/// The digest of a snapshot as it is configured, a relative folder starting at `base`: of its weights and of every file that configures them, by name and
/// content. Heads are not among them, see [`head_digest`]; random weights are the same wherever the preset is.
///
/// # Errors
/// When a file cannot be read, or there are no weights.
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

/// The digest of a head's file, relative to the snapshot's folder as the configuration names it.
///
/// # Errors
/// When it cannot be read.
pub fn head_digest(folder: &Path, head: &Path) -> Result<[u8; 32], ModelError> {
    file_digest(&folder.join(head))
}

fn file_digest(path: &Path) -> Result<[u8; 32], ModelError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path).map_err(|source| ModelError::file(path, source))?;
    Ok(*hasher.finalize().as_bytes())
}
