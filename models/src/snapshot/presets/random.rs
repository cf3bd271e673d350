//! `random:PRESET` where a snapshot's folder is configured: a preset's files, and weights made on the device.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{PRESETS, Preset};
use crate::ModelError;
use crate::libtorch::cache_folder;

/// What such a snapshot begins with.
const PREFIX: &str = "random:";

/// The preset's name, where a configured snapshot is `random:NAME` and no folder.
pub fn random_name(snapshot: &Path) -> Option<&str> {
    snapshot.to_str()?.strip_prefix(PREFIX)
}

/// The folder of a configured snapshot; a relative one starts at `base`. The files of `random:PRESET` are in one of their
/// own, under `$XDG_CACHE_HOME/concord` or `~/.cache/concord`, and are written first.
///
/// # Errors
/// When there is no such preset, or its files cannot be written.
pub fn snapshot_folder(base: &Path, snapshot: &Path) -> Result<PathBuf, ModelError> {
    let Some(name) = random_name(snapshot) else { return Ok(base.join(snapshot)) };
    let unknown = || {
        let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        ModelError::Unsupported(format!("no preset {name:?}: must be one of {}", known.join(", ")))
    };
    let preset = Preset::by_name(name).ok_or_else(unknown)?;
    let folder = cache_folder().unwrap_or_else(|| std::env::temp_dir().join("concord"));
    let folder = folder.join("presets").join(preset.name);
    fs::create_dir_all(&folder).map_err(|source| ModelError::file(&folder, source))?;
    for (name, content) in (preset.files)()? {
        let path = folder.join(name);
        keep(&path, &content).map_err(|source| ModelError::file(&path, source))?;
    }
    Ok(folder)
}

/// Under another name first, and only where that changes anything: another model or process may read it at any time.
fn keep(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|kept| kept == content) {
        return Ok(());
    }
    let mut written = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path))?;
    written.write_all(content)?;
    written.persist(path)?;
    Ok(())
}
