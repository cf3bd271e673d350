//! The file of the networks that were learned for a task.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use concord_policy::Learned;

/// The most bytes of a file: several times the size of networks for a 7B backbone and a dozen correctness
/// estimators.
const BYTES_MAX: u64 = 256 << 20;

/// Reads the file that is called `name` in `folder`.
///
/// # Errors
/// Returns the reason why it cannot be used, and what to do.
pub(super) fn read_learned(folder: &Path, name: &str) -> Result<Learned, String> {
    let refused =
        |reason: &str| format!("{name:?} cannot be used: {reason}; must be a file that `concord fit` wrote");
    let path = folder.join(name);
    let unreadable = |error: std::io::Error| refused(&error.to_string());
    // Reading a pipe might never end.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(refused("not a file"));
    }
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(refused(&format!("more than {BYTES_MAX} bytes")));
    }
    Learned::from_bytes(&bytes).map_err(|error| refused(&error))
}
