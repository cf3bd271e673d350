//! The progress of a process's start, for its log and for `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The progress, shared by the loading threads, the models' threads and the endpoint. A lock, because it is
/// taken a few times for each model, and only until the process is ready.
#[derive(Debug, Clone, Default)]
pub(crate) struct Startup(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    /// The replicas that are loaded, and all.
    loaded: (usize, usize),
    /// The warm-up steps that each replica has run, and all, by its name.
    warm_ups: BTreeMap<String, (usize, usize)>,
    finished: bool,
}

/// The state of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupStatus {
    /// The phase: `loading` or `warming up`.
    pub phase: &'static str,
    /// The progress of the phase in words.
    pub detail: String,
}

impl Startup {
    pub(crate) fn announce_loads(&self, count: usize) {
        self.progress().loaded.1 = count;
    }

    pub(crate) fn loaded(&self) {
        self.progress().loaded.0 += 1;
    }

    /// Announces the warm-up steps of the model, or the replica, of that name.
    pub(crate) fn announce(&self, name: &str, steps: usize) {
        if steps > 0 {
            self.progress().warm_ups.insert(name.to_owned(), (0, steps));
        }
    }

    /// Records that one step has been run. After the start they are not counted.
    pub(crate) fn step(&self, name: &str, took: Duration) {
        let mut progress = self.progress();
        if progress.finished {
            return;
        }
        if let Some((done, steps)) = progress.warm_ups.get_mut(name) {
            *done += 1;
            let seconds = took.as_secs_f64();
            tracing::info!("model {name}: warm-up {done} of {steps}, {seconds:.1} s");
        }
    }

    pub(crate) fn finish(&self) {
        self.progress().finished = true;
    }

    pub(crate) fn status(&self) -> StartupStatus {
        let progress = self.progress();
        if progress.warm_ups.is_empty() {
            let (loaded, all) = progress.loaded;
            return StartupStatus { phase: "loading", detail: format!("loading: {loaded} of {all} models") };
        }
        let unfinished = progress.warm_ups.iter().filter(|(_, (done, steps))| done < steps);
        let parts: Vec<String> =
            unfinished.map(|(name, (done, steps))| format!("{name} {done} of {steps}")).collect();
        StartupStatus { phase: "warming up", detail: format!("warming up: {}", parts.join(", ")) }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_reported_step_by_step() {
        let startup = Startup::default();
        let detail = || startup.status().detail;
        startup.announce_loads(2);
        startup.loaded();
        assert_eq!((startup.status().phase, detail().as_str()), ("loading", "loading: 1 of 2 models"));
        startup.announce("a", 2);
        startup.announce("b/0", 1);
        startup.announce("asked by nothing", 0);
        startup.step("a", Duration::from_secs(1));
        assert_eq!(
            (startup.status().phase, detail().as_str()),
            ("warming up", "warming up: a 1 of 2, b/0 0 of 1")
        );
        startup.step("b/0", Duration::ZERO);
        assert_eq!(detail(), "warming up: a 1 of 2");
    }
}
