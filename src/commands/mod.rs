//! The subcommands of `concord`, and what they share.

pub mod bench;
pub mod classify;
pub mod evaluate;
pub mod fit;
pub mod head;
mod labelled;
pub mod models;
pub mod parity;
mod pictures;
pub mod serve;
pub mod validate;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use concord_actors::policy::Policy;
use concord_actors::{Engine, EngineOptions};
use concord_models::{ModelError, load_model};

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

/// Starts the actors of a configuration, or of one task and the models that it asks, saying at a terminal how far it
/// is, since big models take a while; then does `work` with them.
fn with_engine<T>(
    ensemble: &Ensemble,
    task: Option<&str>,
    work: impl AsyncFnOnce(&Engine) -> T,
) -> Result<T, String> {
    let Some(task) = task else {
        return with_models(ensemble.engine_options(), ensemble.tasks(), work);
    };
    let mut tasks = ensemble.tasks().clone();
    tasks.retain(|name, _| name == task);
    with_tasks(ensemble, &tasks, work)
}

/// The same for tasks that need not be those of the configuration, and the models that they ask.
fn with_tasks<T>(
    ensemble: &Ensemble,
    tasks: &BTreeMap<String, Policy>,
    work: impl AsyncFnOnce(&Engine) -> T,
) -> Result<T, String> {
    let is_asked =
        |model: &str| tasks.values().flat_map(Policy::members).any(|member| **member.model() == *model);
    let mut options = ensemble.engine_options();
    options.models.retain(|name, _| is_asked(name));
    options.clouds.retain(|name, _| is_asked(name));
    with_models(options, tasks, work)
}

fn with_models<T>(
    options: EngineOptions,
    tasks: &BTreeMap<String, Policy>,
    work: impl AsyncFnOnce(&Engine) -> T,
) -> Result<T, String> {
    let show = stderr().is_terminal();
    let count = options.models.len();
    if show {
        eprint!("loading {count} models …");
    }
    actix::System::new().block_on(async {
        let engine = Engine::new(options).map_err(|error| error.to_string())?;
        let mut loaded = 0;
        let outcome =
            engine.load(tasks, &|_: &str, options: &_, base: &_| load_model(options, base), |name, _| {
                loaded += 1;
                if show {
                    eprint!("\r\x1b[Kloaded {loaded} of {count} models: {name} …");
                }
            });
        if show {
            eprint!("\r\x1b[K");
        }
        outcome.map_err(|error| error.to_string())?;
        Ok(work(&engine).await)
    })
}

/// libtorch's exceptions arrive as panics: out of memory, for instance.
fn contained<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(text.lines().next().unwrap_or_default().to_owned())
        }
    }
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
