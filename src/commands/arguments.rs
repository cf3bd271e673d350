//! Arguments that several commands share, and the files that they name.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{ConfigError, Ensemble};
use crate::problem::Problem;

/// The time limit of a request from the command line: a day, since the person at the terminal decides how
/// long is too long.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// The configuration that a command works on.
#[derive(Debug, clap::Args)]
pub struct EnsembleArgs {
    /// The ensemble's configuration
    #[arg(long, short, env = "CONCORD_ENSEMBLE", default_value = "ensemble.toml", value_name = "FILE")]
    pub ensemble: PathBuf,
}

impl EnsembleArgs {
    /// Reads and validates the configuration; the error is ready to be shown.
    pub(super) fn read(&self) -> Result<Ensemble, String> {
        Ensemble::load(&self.ensemble).map_err(|error| match &error {
            ConfigError::Read { .. } => {
                format!("{error}; name the configuration with --ensemble FILE")
            }
            ConfigError::Invalid(faults) => {
                let (count, file) = (faults.diagnostics().len(), faults.file());
                format!("{count} fault{} in {file}:\n{faults}", if count == 1 { "" } else { "s" })
            }
        })
    }
}

/// Returns the task that `--task` names, or the only one that is configured.
///
/// # Errors
/// Returns a message with the names to choose from if there is no such task, or none is named and there are
/// several.
pub(super) fn choose_task(ensemble: &Ensemble, named: Option<&str>) -> Result<String, String> {
    let names: Vec<&str> = ensemble.tasks().keys().map(String::as_str).collect();
    match named {
        Some(task) if ensemble.tasks().contains_key(task) => Ok(task.to_owned()),
        Some(task) => Err(format!("no task {task:?} is configured: must be one of {}", names.join(", "))),
        None if names.len() == 1 => Ok(names[0].to_owned()),
        None => Err(format!("several tasks are configured: name one with --task: {}", names.join(", "))),
    }
}

/// Reads a file of at most `limit` bytes. Devices and pipes have no size to check beforehand, so that the
/// bytes are counted while they are read.
pub(super) fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(|error| Problem::unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::unreadable(&error))?;
    if bytes.len() as u64 > limit { Err(Problem::too_many_bytes(limit)) } else { Ok(bytes) }
}
