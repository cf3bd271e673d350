//! Follows `ensemble.toml`: what can change while the server runs, changes; what is faulty changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use concord_actors::{Engine, ReloadOutcome};
use concord_policy::Policy;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::config::{Change, ConfigError, Ensemble, LocatedDiagnostic, change};

/// Editors write a file in several steps; it is read when they have been quiet for this long.
const QUIET: Duration = Duration::from_millis(100);
const FAULTY: &str = "the changed configuration is faulty, and the old one stays in force";

/// Follows the file until it is dropped.
pub(super) struct Reloader {
    /// Its drop ends the thread, which sees its channel closed. `None` where the folder cannot be watched.
    _watcher: Option<RecommendedWatcher>,
}

impl Reloader {
    /// Watches the folder, not the file: editors and Kubernetes replace it by another of the same name.
    pub(super) fn start(file: PathBuf, started: Ensemble, engine: &Arc<Engine>) -> Self {
        let (changed, changes) = mpsc::channel();
        let follower = Follower { file, started, engine: Arc::clone(engine), seen: None, reported: None };
        let folder = follower.folder();
        let watch = || {
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // What only read the file has not changed it.
                if event.is_ok_and(|event| !event.kind.is_access()) {
                    // The thread may have ended.
                    let _gone = changed.send(());
                }
            })?;
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            Ok::<_, notify::Error>(watcher)
        };
        let watcher = watch();
        if let Err(error) = &watcher {
            tracing::warn!(%error, folder = %folder.display(), "changes of the configuration are not followed");
        }
        let thread = std::thread::Builder::new().name("reload".to_owned());
        if let Err(error) = thread.spawn(move || follower.follow(&changes)) {
            tracing::warn!(%error, "changes of the configuration are not followed");
        }
        Self { _watcher: watcher.ok() }
    }
}

struct Follower {
    file: PathBuf,
    /// The configuration that the process was started with.
    started: Ensemble,
    engine: Arc<Engine>,
    /// The content of the file when it was last read; `None` before that, and when it could not be read.
    seen: Option<Ensemble>,
    /// The error that was logged last, while it stands. Other files of the folder change too, the log for
    /// instance, and must not cause it to be logged again.
    reported: Option<String>,
}

impl Follower {
    fn folder(&self) -> PathBuf {
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.unwrap_or(Path::new(".")).to_owned()
    }

    fn follow(mut self, changes: &mpsc::Receiver<()>) {
        self.seen = Some(self.started.clone());
        // What was edited while the models were loaded, before the folder was watched.
        if Ensemble::load(&self.file).ok().as_ref() != self.seen.as_ref() {
            self.reload();
        }
        while changes.recv().is_ok() {
            while changes.recv_timeout(QUIET).is_ok() {}
            self.reload();
        }
    }

    fn reload(&mut self) {
        match Ensemble::load(&self.file) {
            Ok(ensemble) if self.seen.as_ref() == Some(&ensemble) => self.reload_heads(&ensemble),
            Ok(ensemble) => {
                self.reported = None;
                let change = change(&self.started, &self.current(), &ensemble);
                let outcome = if self.apply(&change, &ensemble) {
                    ReloadOutcome::Applied
                } else {
                    ReloadOutcome::Rejected
                };
                self.count(outcome);
                self.seen = Some(ensemble);
            }
            Err(error) => {
                self.seen = None;
                if self.is_news(&error.to_string()) {
                    // Before it is counted, so that whoever sees the count finds the log and the gauge.
                    self.report(&error);
                    self.count(ReloadOutcome::Rejected);
                } else {
                    tracing::debug!("the faults of the configuration are those that were reported");
                }
            }
        }
    }

    /// The file is the same, but a head may have been trained again under its old name.
    fn reload_heads(&mut self, ensemble: &Ensemble) {
        let tasks = change(&self.started, &self.current(), ensemble).tasks;
        match self.engine.apply(&tasks, ensemble.models()) {
            Ok(()) => {
                self.reported = None;
                self.set_fault_count(0);
            }
            Err(error) => {
                self.set_fault_count(error.failures.len());
                if self.is_news(&error.to_string()) {
                    for (model, failure) in &error.failures {
                        tracing::error!(model, %failure, "a head that has changed cannot be used, and the old one stays in force");
                    }
                }
            }
        }
    }

    /// Returns whether an error has not been reported yet, and takes it for reported.
    fn is_news(&mut self, error: &str) -> bool {
        let is_news = self.reported.as_deref() != Some(error);
        self.reported = Some(error.to_owned());
        is_news
    }

    /// The tasks as they are answered now.
    fn current(&self) -> BTreeMap<String, Policy> {
        let plan = self.engine.plan();
        plan.tasks().map(|task| (task.name().to_owned(), task.policy().clone())).collect()
    }

    /// Applies the change and returns true, or reports why it cannot be applied.
    fn apply(&mut self, change: &Change, ensemble: &Ensemble) -> bool {
        for what in &change.needs_restart {
            tracing::warn!(what, "needs a restart, and stays as it was");
        }
        match self.engine.apply(&change.tasks, ensemble.models()) {
            Ok(()) => {
                self.set_fault_count(0);
                tracing::info!(tasks = change.tasks.len(), "the changed configuration applies from now on");
                true
            }
            Err(error) => {
                self.reported = Some(error.to_string());
                self.set_fault_count(error.failures.len());
                for (model, failure) in &error.failures {
                    tracing::error!(
                        model,
                        %failure,
                        "the changed configuration cannot be used, and the old one stays in force"
                    );
                }
                false
            }
        }
    }

    /// Logs every fault of the file, and shows how many there are.
    fn report(&self, error: &ConfigError) {
        match error {
            ConfigError::Read { path, source } => {
                self.set_fault_count(1);
                tracing::error!(location = %path.display(), fault = %source, "{FAULTY}");
            }
            ConfigError::Invalid(faults) => {
                self.set_fault_count(faults.diagnostics().len());
                for LocatedDiagnostic { location, diagnostic } in faults.diagnostics() {
                    tracing::error!(location = faults.place(location), fault = %diagnostic, "{FAULTY}");
                }
            }
        }
    }

    fn set_fault_count(&self, count: usize) {
        self.engine.metrics().config_faults.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    fn count(&self, outcome: ReloadOutcome) {
        self.engine.metrics().count_reload(outcome);
    }
}
