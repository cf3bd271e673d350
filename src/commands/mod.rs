//! The subcommands of `concord`, and what they share.

pub mod classify;
pub mod models;
pub mod parity;
pub mod validate;

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::path::PathBuf;

use concord_actors::Cascade;
use concord_models::set_cpu_threads;

use crate::config::{ConfigError, Ensemble};

/// Exit status of a command that could not begin: bad arguments, configuration or snapshots.
pub const EXIT_UNUSABLE: u8 = 2;

/// Which configuration a command works on.
#[derive(Debug, clap::Args)]
pub struct EnsembleArgs {
    /// The ensemble's configuration
    #[arg(long, short, env = "CONCORD_ENSEMBLE", default_value = "ensemble.toml", value_name = "FILE")]
    pub ensemble: PathBuf,
}

impl EnsembleArgs {
    fn read(&self) -> Result<Ensemble, String> {
        Ensemble::load(&self.ensemble).map_err(|error| match &error {
            ConfigError::Read { .. } => {
                format!("{error}; name the configuration with --ensemble FILE")
            }
            ConfigError::Faults(faults) => {
                let (count, file) = (faults.faults().len(), faults.file());
                format!("{count} fault{} in {file}:\n{faults}", if count == 1 { "" } else { "s" })
            }
        })
    }
}

/// Loads all models of a configuration, or those that one task asks, saying which at a terminal, since big ones
/// take a while.
fn load_models(ensemble: &Ensemble, task: Option<&str>) -> Result<Cascade, String> {
    let mut tasks = ensemble.tasks().clone();
    let mut models = ensemble.models().clone();
    if let Some(task) = task {
        tasks.retain(|name, _| name == task);
        models.retain(|name, _| tasks[task].members().any(|member| member.model().as_ref() == name));
    }
    set_cpu_threads(ensemble.server().cpu_threads);
    let show = stderr().is_terminal();
    let on_start = |name: &str| {
        if show {
            eprint!("\r\x1b[Kloading {name} …");
        }
    };
    let loaded = Cascade::load(&models, &tasks, ensemble.folder(), on_start);
    if show {
        eprint!("\r\x1b[K");
    }
    loaded.map_err(|error| error.to_string())
}

/// Tells the person at the terminal what went wrong.
pub fn warn(message: &str) {
    eprintln!("concord: {message}");
}

/// Prints to standard output, and ends the program where nobody reads it any more, as behind `head`.
pub fn say(text: &impl Display) {
    if let Err(error) = writeln!(stdout(), "{text}") {
        if error.kind() != ErrorKind::BrokenPipe {
            warn(&format!("standard output: {error}"));
        }
        std::process::exit(1);
    }
}
