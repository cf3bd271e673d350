//! The actors of a command: started on a configuration, and used within one closure.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};

use concord_actors::{Engine, EngineOptions};
use concord_models::{ModelError, load_model};
use concord_policy::Policy;

use crate::config::Ensemble;

/// Starts the actors of a configuration, or only those of one task and its models, and calls `work` with
/// them. At a terminal it shows its progress, since big models take a while to load.
pub(super) fn with_engine<T>(
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

/// Does the same for tasks that need not be those of the configuration, and their models.
pub(super) fn with_tasks<T>(
    ensemble: &Ensemble,
    tasks: &BTreeMap<String, Policy>,
    work: impl AsyncFnOnce(&Engine) -> T,
) -> Result<T, String> {
    let is_member =
        |model: &str| tasks.values().flat_map(Policy::members).any(|member| **member.model() == *model);
    let mut options = ensemble.engine_options();
    options.models.retain(|name, _| is_member(name));
    options.clouds.retain(|name, _| is_member(name));
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

/// Calls `work` and returns its error as text. libtorch's exceptions, out of memory for instance, arrive as
/// panics and are returned like errors.
pub(super) fn contained<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(text.lines().next().unwrap_or_default().to_owned())
        }
    }
}
