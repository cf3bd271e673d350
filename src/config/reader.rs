//! Reads the values of the file into its sections, and validates them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use concord_actors::Diagnostic;
use concord_actors::{CacheSection, CloudSection};
use concord_models::{ARCHITECTURES, HEADS, ModelOptions};
use concord_policy::{
    AcceptSection, FusionSection, Learned, PathPart, Policy, ScalingSection, StageSection, TaskSection,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::keys::fields_of;
use super::learned::read_learned;
use super::model::{check_model, needs_heads};
use super::own_options::OwnOptions;
use super::section::{Section, flat_keys, unknown_key};
use super::server::ServerSection;
use crate::telemetry::TelemetrySection;

/// The names of the tables at the top of the file.
const SECTIONS: [&str; 5] = ["server", "cache", "telemetry", "models", "tasks"];

/// The contents of the file's tables; complete only if there are no faults.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sections {
    pub(super) server: ServerSection,
    pub(super) cache: CacheSection,
    pub(super) telemetry: TelemetrySection,
    pub(super) models: BTreeMap<String, ModelOptions>,
    pub(super) clouds: BTreeMap<String, CloudSection>,
    pub(super) tasks: BTreeMap<String, Policy>,
}

/// Reads and validates every section of a file in `folder`; the faults have paths from the top of the file.
pub(super) fn read_sections(mut values: Map<String, Value>, folder: &Path) -> (Sections, Vec<Diagnostic>) {
    let mut reader = Reader { folder, faults: Vec::new() };
    let server = reader.flat("server", &mut values, ServerSection::check);
    let cache = reader.flat("cache", &mut values, CacheSection::check);
    let telemetry = reader.flat("telemetry", &mut values, TelemetrySection::check);
    let models = reader.named_tables("models", take(&mut values, "models"));
    let tasks = reader.named_tables("tasks", take(&mut values, "tasks"));
    for key in values.keys() {
        reader.faults.push(Diagnostic::new(vec![key.as_str().into()], unknown_key(key, &SECTIONS)));
    }
    let model_names = models.keys().cloned().collect();
    let task_names = tasks.keys().cloned().collect();
    let is_cloud =
        |value: &Value| value.get("architecture").is_some_and(|name| name == CloudSection::ARCHITECTURE);
    let (clouds, models) = models.into_iter().partition(|(_, value)| is_cloud(value));
    let models = reader.models(models, &task_names);
    let clouds = reader.clouds(clouds);
    let tasks = reader.tasks(tasks, &model_names, &models);
    (Sections { server, cache, telemetry, models, clouds, tasks }, reader.faults)
}

/// A reader of one kind of section after the other that collects their faults.
struct Reader<'a> {
    folder: &'a Path,
    faults: Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Reads a section without tables inside; `check` returns the faults of its values.
    fn flat<T: DeserializeOwned + Default>(
        &mut self,
        name: &str,
        values: &mut Map<String, Value>,
        check: fn(&T) -> Vec<Diagnostic>,
    ) -> T {
        let section = Section::read(take(values, name), flat_keys::<T>);
        let semantic = section.content.as_ref().map(check).unwrap_or_default();
        self.finish(&[name.into()], section, semantic).unwrap_or_default()
    }

    /// Reads the tables in `[models]` or `[tasks]` by name. There must be at least one, and the names must be
    /// valid.
    fn named_tables(&mut self, kind: &str, value: Value) -> BTreeMap<String, Value> {
        let section = Section::<BTreeMap<String, Value>>::read(value, |_| &[]);
        let mut semantic = Vec::new();
        for name in section.content.iter().flat_map(BTreeMap::keys).filter(|name| !is_name(name)) {
            let message = "not a name: must be of lower-case letters, digits, \"_\" and \"-\"";
            semantic.push(Diagnostic::new(vec![name.as_str().into()], message));
        }
        if section.content.as_ref().is_some_and(BTreeMap::is_empty) {
            semantic.push(Diagnostic::new(
                Vec::new(),
                format!("is missing: must have at least one [{kind}.NAME]"),
            ));
        }
        self.finish(&[kind.into()], section, semantic).unwrap_or_default()
    }

    /// Reads the models. Returns those that could be read in full, whatever other faults they have.
    fn models(
        &mut self,
        tables: BTreeMap<String, Value>,
        tasks: &BTreeSet<String>,
    ) -> BTreeMap<String, ModelOptions> {
        let mut models = BTreeMap::new();
        for (name, mut value) in tables {
            let own = OwnOptions::take(&mut value, ARCHITECTURES);
            let mut section = Section::<ModelOptions>::read_with(value, flat_keys::<ModelOptions>, &own.keys);
            let is_intact = section.is_intact() && own.is_intact;
            let mut semantic = own.faults;
            if let Some(options) = &mut section.content {
                options.own = own.table;
                semantic.extend(check_model(options, tasks));
            }
            let options = self.finish(&["models".into(), name.as_str().into()], section, semantic);
            models.extend(options.filter(|_| is_intact).map(|options| (name, options)));
        }
        models
    }

    /// Reads the models behind a server. Returns those that could be read in full.
    fn clouds(&mut self, tables: BTreeMap<String, Value>) -> BTreeMap<String, CloudSection> {
        let mut clouds = BTreeMap::new();
        for (name, value) in tables {
            let section = Section::read(value, flat_keys::<CloudSection>);
            let semantic = section.content.as_ref().map(CloudSection::check).unwrap_or_default();
            let is_intact = section.is_intact();
            let cloud = self.finish(&["models".into(), name.as_str().into()], section, semantic);
            clouds.extend(cloud.filter(|_| is_intact).map(|cloud| (name, cloud)));
        }
        clouds
    }

    /// Reads the tasks. Returns those without faults. `model_names` are all models, including those that
    /// could not be read: that is no fault of a task.
    fn tasks(
        &mut self,
        tables: BTreeMap<String, Value>,
        model_names: &BTreeSet<String>,
        models: &BTreeMap<String, ModelOptions>,
    ) -> BTreeMap<String, Policy> {
        let mut tasks = BTreeMap::new();
        for (name, value) in tables {
            let section = Section::<TaskSection>::read(value, task_keys);
            let mut semantic = Vec::new();
            if let Some(task) = &section.content {
                let (learned, faults) = self.learned(task, models);
                semantic.extend(faults);
                match Policy::from_section(task, model_names) {
                    Ok(policy) => {
                        let policy = match learned {
                            Some(learned) => policy.with_learned(learned),
                            None => policy,
                        };
                        tasks.insert(name.clone(), policy);
                    }
                    Err(errors) => semantic.extend(errors.into_iter().map(Diagnostic::from)),
                }
                semantic.extend(missing_heads(&name, task, models));
            }
            self.finish(&["tasks".into(), name.as_str().into()], section, semantic);
        }
        tasks
    }

    /// Reads the learned file of a task. Returns its networks and its faults.
    fn learned(
        &self,
        task: &TaskSection,
        models: &BTreeMap<String, ModelOptions>,
    ) -> (Option<Arc<Learned>>, Vec<Diagnostic>) {
        let Some(name) = task.learned.as_deref().filter(|name| !name.trim().is_empty()) else {
            return (None, Vec::new());
        };
        match read_learned(self.folder, name) {
            Ok(learned) => {
                let errors = learned.check(task, &models.keys().cloned().collect());
                (Some(Arc::new(learned)), errors.into_iter().map(Diagnostic::from).collect())
            }
            Err(message) => (None, vec![Diagnostic::new(vec!["learned".into()], message)]),
        }
    }

    /// Adds the faults of the section at `path` to the others, and returns its content.
    fn finish<T: DeserializeOwned>(
        &mut self,
        path: &[PathPart],
        mut section: Section<T>,
        semantic: Vec<Diagnostic>,
    ) -> Option<T> {
        let content = section.content.take();
        self.faults.extend(section.faults_with(semantic).into_iter().map(|fault| fault.within(path)));
        content
    }
}

/// Removes and returns the value of a section; an empty table if the section is absent.
fn take(values: &mut Map<String, Value>, key: &str) -> Value {
    values.shift_remove(key).unwrap_or_else(|| Value::Object(Map::new()))
}

fn is_name(text: &str) -> bool {
    let is_allowed = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || "_-".contains(char);
    !text.is_empty() && text.chars().all(is_allowed)
}

/// Returns the keys of the table at `path` in `[tasks.NAME]`.
fn task_keys(path: &[PathPart]) -> &'static [&'static str] {
    let key = |part: &PathPart, name: &str| *part == PathPart::from(name);
    match path {
        [] => fields_of::<TaskSection>(),
        [fusion] if key(fusion, "fusion") => fields_of::<FusionSection>(),
        [scaling, _] if key(scaling, "scaling") => fields_of::<ScalingSection>(),
        [stages, _] if key(stages, "stages") => fields_of::<StageSection>(),
        [stages, _, accept] if key(stages, "stages") && key(accept, "accept") => fields_of::<AcceptSection>(),
        _ => &[],
    }
}

/// Returns a fault for each member of a task that has no head for it.
fn missing_heads(name: &str, task: &TaskSection, models: &BTreeMap<String, ModelOptions>) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for (stage, section) in task.stages.iter().enumerate() {
        for (index, model) in section.models.iter().enumerate() {
            let lacks_head = |options: &&ModelOptions| needs_heads(options) && options.head(name).is_none();
            if models.get(model).filter(lacks_head).is_some() {
                let path = vec!["stages".into(), stage.into(), "models".into(), index.into()];
                let message = format!(
                    "{model:?} has no head for this task: must have one in models.{model}.{}",
                    HEADS.name
                );
                faults.push(Diagnostic::new(path, message));
            }
        }
    }
    faults
}
