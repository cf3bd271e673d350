//! Follows `ensemble.toml`: what can change while the server runs, changes; what is faulty changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use concord_actors::Engine;
use concord_policy::Policy;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::config::{Change, ConfigError, Ensemble, change};

/// Editors write a file in several steps; it is read when they have been quiet for this long.
const QUIET: Duration = Duration::from_millis(100);
/// The faults that metrics name; a file with more is not worth more labels.
const FAULTS_IN_METRICS_MAX: usize = 32;

/// Follows the file until it is dropped.
pub(super) struct Reloader {
    /// Its drop ends the thread, which sees its channel closed. `None` where the folder cannot be watched.
    _watcher: Option<RecommendedWatcher>,
}

impl Reloader {
    /// Watches the folder, not the file: editors and Kubernetes replace it by another of the same name.
    pub(super) fn start(file: PathBuf, started: Ensemble, engine: &Arc<Engine>) -> Self {
        let (changed, changes) = mpsc::channel();
        let follower = Follower { file, started, engine: Arc::clone(engine), seen: None, told: None };
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
    /// What the file said when it was last read; `None` before that, and when it could not be.
    seen: Option<Ensemble>,
    /// What was wrong with it then. Other files of the folder change too, the log for instance, and must not make it
    /// longer.
    told: Option<String>,
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
        let metrics = self.engine.metrics().clone();
        let count = |outcome: &str| metrics.config_reloads.with_label_values(&[outcome]).inc();
        match Ensemble::load(&self.file) {
            // A head may have been trained again under its old name.
            Ok(ensemble) if self.seen.as_ref() == Some(&ensemble) => {
                let tasks = change(&self.started, &self.current(), &ensemble).tasks;
                match self.engine.apply(&tasks, ensemble.models()) {
                    Ok(()) => self.told = None,
                    Err(error) if self.is_news(&error.to_string()) => {
                        tracing::error!(%error, "a head that has changed cannot be used, and the old one stays");
                    }
                    Err(_) => {}
                }
            }
            Ok(ensemble) => {
                self.told = None;
                metrics.config_faults.reset();
                let change = change(&self.started, &self.current(), &ensemble);
                count(if self.apply(&change, &ensemble) { "applied" } else { "rejected" });
                self.seen = Some(ensemble);
            }
            Err(error) => {
                self.seen = None;
                if self.is_news(&error.to_string()) {
                    // Whoever sees the count finds it told.
                    self.tell(&error);
                    count("rejected");
                }
            }
        }
    }

    /// Whether a fault has not been told yet; it has been then.
    fn is_news(&mut self, fault: &str) -> bool {
        let is_news = self.told.as_deref() != Some(fault);
        self.told = Some(fault.to_owned());
        is_news
    }

    /// The tasks as they are answered now.
    fn current(&self) -> BTreeMap<String, Policy> {
        let plan = self.engine.plan();
        plan.tasks().map(|task| (task.name().to_owned(), task.policy().clone())).collect()
    }

    fn apply(&mut self, change: &Change, ensemble: &Ensemble) -> bool {
        for what in &change.needs_restart {
            tracing::warn!(what, "needs a restart, and stays as it was");
        }
        match self.engine.apply(&change.tasks, ensemble.models()) {
            Ok(()) => {
                tracing::info!(tasks = change.tasks.len(), "the changed configuration applies from now on");
                true
            }
            Err(error) => {
                self.told = Some(error.to_string());
                for (model, failure) in &error.failures {
                    let fault = format!("model {model}: {failure}");
                    tracing::error!(fault, "the changed configuration cannot be used, and the old one stays");
                    self.fault_in_metrics(&self.file.display().to_string(), &fault);
                }
                false
            }
        }
    }

    /// Names every fault, and what stays in force.
    fn tell(&self, error: &ConfigError) {
        self.engine.metrics().config_faults.reset();
        const KEPT: &str = "the changed configuration is faulty, and the old one stays";
        match error {
            ConfigError::Read { .. } => {
                tracing::error!(fault = %error, "{KEPT}");
                self.fault_in_metrics(&self.file.display().to_string(), &error.to_string());
            }
            ConfigError::Faults(faults) => {
                for (index, line) in faults.to_string().lines().enumerate() {
                    tracing::error!(fault = line, "{KEPT}");
                    if index < FAULTS_IN_METRICS_MAX {
                        let (location, fault) = line.split_once(": ").unwrap_or(("", line));
                        self.fault_in_metrics(location, fault);
                    }
                }
            }
        }
    }

    fn fault_in_metrics(&self, location: &str, fault: &str) {
        self.engine.metrics().config_faults.with_label_values(&[location, fault]).set(1.0);
    }
}
