//! The parts of a changed configuration that apply at once, and those that need a restart.

use std::collections::BTreeMap;

use concord_models::ModelOptions;
use concord_policy::Policy;

use super::Ensemble;

/// The consequences of a changed file for a running process.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The tasks that apply from now on.
    pub tasks: BTreeMap<String, Policy>,
    /// The changes that need a restart, in words; until then, the old values apply.
    pub needs_restart: Vec<String>,
}

/// Compares a changed configuration with the one that the process was started with. `current` are the tasks
/// that apply now: a changed task that has a model which is not running stays as it is there.
pub fn change(started: &Ensemble, current: &BTreeMap<String, Policy>, changed: &Ensemble) -> Change {
    let mut needs_restart = Vec::new();
    for (section, differs) in [
        ("[server]", started.server() != changed.server()),
        ("[cache]", started.cache() != changed.cache()),
        ("[telemetry]", started.telemetry() != changed.telemetry()),
    ] {
        if differs {
            needs_restart.push(format!("{section} has changed"));
        }
    }
    for (name, options) in changed.models() {
        match started.models().get(name) {
            None => needs_restart.push(format!("[models.{name}] is new")),
            Some(running) if !same_but_for_heads(running, options) => {
                needs_restart.push(format!("[models.{name}] has changed in more than its heads"));
            }
            Some(_) => {}
        }
    }
    for (name, cloud) in changed.clouds() {
        match started.clouds().get(name) {
            None => needs_restart.push(format!("[models.{name}] is new")),
            Some(running) if running != cloud => needs_restart.push(format!("[models.{name}] has changed")),
            Some(_) => {}
        }
    }
    for name in started.clouds().keys().filter(|name| !changed.clouds().contains_key(*name)) {
        needs_restart.push(format!("[models.{name}] was removed"));
    }
    for name in started.models().keys().filter(|name| !changed.models().contains_key(*name)) {
        needs_restart.push(format!("[models.{name}] was removed"));
    }
    let runs = |name: &str| started.models().contains_key(name) || started.clouds().contains_key(name);
    let mut tasks = BTreeMap::new();
    for (name, policy) in changed.tasks() {
        match policy.members().find(|member| !runs(member.model())) {
            None => _ = tasks.insert(name.clone(), policy.clone()),
            Some(member) => {
                let model = member.model();
                needs_restart.push(format!("[tasks.{name}] has model {model}, which is not running"));
                tasks.extend(current.get(name).map(|policy| (name.clone(), policy.clone())));
            }
        }
    }
    Change { tasks, needs_restart }
}

fn same_but_for_heads(running: &ModelOptions, changed: &ModelOptions) -> bool {
    running.is_same_but_for_heads(changed)
}
