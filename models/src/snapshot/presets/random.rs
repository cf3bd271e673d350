//! Support for `random:PRESET` in place of a snapshot's folder: a preset's files, with weights generated on
//! the device.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{PRESETS, Preset};
use crate::ModelError;
use crate::libtorch::cache_folder;

/// The prefix of such a snapshot.
const PREFIX: &str = "random:";

/// Returns the preset's name if a configured snapshot is `random:NAME` and not a folder.
pub fn random_name(snapshot: &Path) -> Option<&str> {
    snapshot.to_str()?.strip_prefix(PREFIX)
}

/// Returns the folder of a configured snapshot; a relative one starts at `base`. The files of `random:PRESET`
/// are written into a folder of their own, under `$XDG_CACHE_HOME/concord` or `~/.cache/concord`, or the
/// folder for temporary files if there is neither.
///
/// # Errors
/// Returns an error if there is no such preset, or its files cannot be written.
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

/// Writes a file under another name first, and only if that changes its content: another model or process may
/// read it at any time.
fn keep(path: &Path, content: &[u8]) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|kept| kept == content) {
        return Ok(());
    }
    let mut written = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(path))?;
    written.write_all(content)?;
    written.persist(path)?;
    Ok(())
}
