//! The files of learned networks: each fit writes a new one, so that an older `ensemble.toml` still finds its
//! own.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

/// The largest number of files of one task; somebody should remove some then.
const VERSIONS_MAX: u32 = 9999;

/// Returns the name of the next file of a task in this folder: `learned.TASK.vN.safetensors`.
///
/// # Errors
/// When there are too many.
pub(crate) fn next_learned_file(folder: &Path, task: &str) -> Result<String, String> {
    let names = (1..=VERSIONS_MAX).map(|version| format!("learned.{task}.v{version}.safetensors"));
    let mut free = names.filter(|name| !folder.join(name).exists());
    free.next().ok_or(format!("{} has {VERSIONS_MAX} learned files of {task}: remove some", folder.display()))
}

/// Writes a new file.
///
/// # Errors
/// When it exists already, or cannot be written.
pub(crate) fn write_learned_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    let path = folder.join(name);
    let with_context = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => format!("{} exists already: run it again", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(with_context)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(with_context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        for version in 1..=3 {
            let name = next_learned_file(folder.path(), "roadwork").unwrap();
            assert_eq!(name, format!("learned.roadwork.v{version}.safetensors"));
            write_learned_file(folder.path(), &name, b"bytes").unwrap();
            let error = write_learned_file(folder.path(), &name, b"others").unwrap_err();
            assert!(error.contains("exists already"), "{error}");
        }
        assert_eq!(std::fs::read(folder.path().join("learned.roadwork.v1.safetensors")).unwrap(), b"bytes");
    }
}
