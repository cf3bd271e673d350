//! The models to measure, and the loading of each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use concord_actors::task_labels;
use concord_models::presets::{self, PRESETS, Preset, random_name};
use concord_models::{
    ARCHITECTURES, Architecture, DTYPES, Model, ModelOptions, TaskSpec, is_device_name, load_model,
    load_random,
};
use tempfile::TempDir;

use super::args::BenchArgs;
use crate::commands::contained;
use crate::config::Ensemble;

/// A model to measure.
#[derive(Debug)]
pub(super) struct BenchModel {
    pub(super) name: String,
    options: ModelOptions,
    /// The folder from which a relative snapshot path starts.
    base: PathBuf,
    /// The model votes on the first of these that it can be prepared for.
    pub(super) tasks: Vec<TaskSpec>,
    /// The files of a preset, which are deleted when this is dropped.
    random: Option<TempDir>,
}

/// The options of one run of a model.
#[derive(Debug, Clone)]
pub(super) struct Variant {
    pub(super) options: ModelOptions,
}

/// Returns the models that the arguments name, or all of the ensemble.
///
/// # Errors
/// Returns the reason if an argument or the configuration cannot be used.
pub(super) fn bench_models(args: &BenchArgs) -> Result<Vec<BenchModel>, String> {
    check(args)?;
    let mut models = Vec::new();
    for name in &args.random {
        models.push(of_preset(name)?);
    }
    if let (Some(folder), Some(architecture)) = (&args.snapshot, &args.architecture) {
        models.push(of_snapshot(folder, architecture)?);
    }
    if models.is_empty() || !args.models.is_empty() {
        models.extend(of_ensemble(args, &args.models)?);
    }
    Ok(models)
}

/// Returns the two that `--together` names: models of the ensemble, or `random:PRESET`.
///
/// # Errors
/// Returns the reason if an argument or the configuration cannot be used.
pub(super) fn pair(args: &BenchArgs) -> Result<[BenchModel; 2], String> {
    check(args)?;
    let bench_model = |name: &String| match random_name(name.as_ref()) {
        Some(preset) => of_preset(preset),
        None => {
            let named = of_ensemble(args, std::slice::from_ref(name))?;
            named.into_iter().next().ok_or_else(|| format!("no model {name:?}"))
        }
    };
    let bench_models: Vec<BenchModel> = args.together.iter().map(bench_model).collect::<Result<_, _>>()?;
    bench_models.try_into().map_err(|_| "--together: must name two models".to_owned())
}

fn check(args: &BenchArgs) -> Result<(), String> {
    if let Some(dtype) = args.dtype.iter().find(|dtype| !DTYPES.iter().any(|(name, _)| name == dtype)) {
        return Err(not_one_of("--dtype", dtype, DTYPES.iter().map(|(name, _)| *name)));
    }
    if let Some(device) = args.device.as_ref().filter(|device| !is_device_name(device)) {
        return Err(format!("--device {device:?}: must be {}", concord_models::DEVICES));
    }
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(format!("--seconds {}: must be 0 or more", args.seconds));
    }
    Ok(())
}

fn not_one_of<'a>(what: &str, given: &str, known: impl Iterator<Item = &'a str>) -> String {
    format!("{what} {given:?}: must be one of {}", known.collect::<Vec<_>>().join(", "))
}

fn of_preset(name: &str) -> Result<BenchModel, String> {
    let known = || PRESETS.iter().map(|preset| preset.name);
    let preset = Preset::by_name(name).ok_or_else(|| not_one_of("--random", name, known()))?;
    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    preset.write(folder.path()).map_err(|error| error.to_string())?;
    Ok(BenchModel {
        name: preset.name.to_owned(),
        options: unconfigured(preset.architecture, folder.path()),
        base: PathBuf::new(),
        tasks: vec![preset.task()],
        random: Some(folder),
    })
}

fn of_snapshot(folder: &Path, architecture: &str) -> Result<BenchModel, String> {
    if Architecture::by_name(architecture).is_none() {
        let known = ARCHITECTURES.iter().map(|architecture| architecture.name);
        return Err(not_one_of("--architecture", architecture, known));
    }
    Ok(BenchModel {
        name: folder.display().to_string(),
        options: unconfigured(architecture, folder),
        base: PathBuf::new(),
        tasks: vec![presets::task(None)],
        random: None,
    })
}

fn unconfigured(architecture: &str, snapshot: &Path) -> ModelOptions {
    ModelOptions {
        architecture: architecture.to_owned(),
        snapshot: snapshot.to_owned(),
        dtype: "bf16".to_owned(),
        ..ModelOptions::default()
    }
}

fn of_ensemble(args: &BenchArgs, names: &[String]) -> Result<Vec<BenchModel>, String> {
    let ensemble = args.ensemble.read()?;
    let mut models: BTreeMap<String, ModelOptions> = ensemble.models().clone();
    if let Some(unknown) = names.iter().find(|name| !models.contains_key(*name)) {
        return Err(not_one_of("model", unknown, models.keys().map(String::as_str)));
    }
    models.retain(|name, _| names.is_empty() || names.contains(name));
    let bench_model = |(name, options): (String, ModelOptions)| BenchModel {
        tasks: tasks_of(&name, &options, &ensemble),
        name,
        options,
        base: ensemble.folder().to_owned(),
        random: None,
    };
    Ok(models.into_iter().map(bench_model).collect())
}

/// Returns the tasks that the model is a member of.
fn tasks_of(name: &str, options: &ModelOptions, ensemble: &Ensemble) -> Vec<TaskSpec> {
    let tasks = ensemble
        .tasks()
        .iter()
        .filter(|(_, policy)| policy.members().any(|member| member.model().as_ref() == name));
    tasks.map(|(task, policy)| task_labels(task, policy, options.head(task))).collect()
}

impl BenchModel {
    /// Returns a variant for each number format, with and without graphs as `--graphs` says.
    pub(super) fn variants(&self, args: &BenchArgs) -> Vec<Variant> {
        let configured = [self.options.dtype.clone()];
        let dtypes = if args.dtype.is_empty() { configured.as_slice() } else { &args.dtype };
        let mut variants = Vec::new();
        for dtype in dtypes {
            for &graphs in args.graphs.each() {
                let device = args.device.as_ref().unwrap_or(&self.options.device).clone();
                let options = ModelOptions { dtype: dtype.clone(), device, graphs, ..self.options.clone() };
                variants.push(Variant { options });
            }
        }
        variants
    }

    /// Returns the source of its weights: `random`, or the folder of the snapshot.
    pub(super) fn source(&self) -> String {
        match self.random {
            Some(_) => "random".to_owned(),
            None if random_name(&self.options.snapshot).is_some() => "random".to_owned(),
            None => self.base.join(&self.options.snapshot).display().to_string(),
        }
    }

    pub(super) fn load(&self, variant: &Variant, seed: i64) -> Result<Box<dyn Model>, String> {
        contained(|| match self.random {
            Some(_) => load_random(&variant.options, &self.base, seed),
            None => load_model(&variant.options, &self.base),
        })
    }
}
