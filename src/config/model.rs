//! The checks of a section `[models.NAME]`, which itself is [`ModelOptions`].

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use concord_actors::CloudSection;
use concord_actors::{Diagnostic, not_one_of};
use concord_models::presets::{PRESETS, Preset, random_name};
use concord_models::{
    ARCHITECTURES, Architecture, Capability, DECODES, DEVICES, DTYPES, HEADS, ModelOptions, is_device_name,
};

use super::server::out_of_range;

/// The range of `max_batch`. Larger batches only wait longer: a GPU is saturated before.
const MAX_BATCH: RangeInclusive<u64> = 1..=1024;
/// The range of `max_delay_ms`. A batch that waits for longer than a second is a mistake.
const MAX_DELAY_MS: RangeInclusive<u64> = 0..=1000;
/// The range of `queue_capacity`. Every image in a queue is held in memory, as pixels and as the model's
/// input.
const QUEUE_CAPACITY: RangeInclusive<u64> = 1..=65_536;
/// The range of `replicas`: up to eight on each of eight GPUs. On the CPU, replicas share the cores, and more
/// than a few gain nothing.
const REPLICAS: RangeInclusive<u64> = 1..=64;
/// The range of `batch_recovery_s`. Each trial of a larger batch may cost a failed forward pass; a day is as
/// good as never.
const BATCH_RECOVERY_S: RangeInclusive<u64> = 1..=86_400;

/// The number format that only some devices and architectures support.
const FP8: &str = "fp8";

/// Returns whether a model votes only on the tasks that it has a head for.
pub(crate) fn needs_heads(options: &ModelOptions) -> bool {
    Architecture::by_name(&options.architecture)
        .is_some_and(|architecture| architecture.can(Capability::Heads))
}

/// Returns the faults of a model, as far as the file shows them: its snapshot is not looked at.
///
/// `tasks` are the names of the configured tasks. The options of its architecture are checked when they are
/// read.
pub(super) fn check_model(options: &ModelOptions, tasks: &BTreeSet<String>) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    let mut fault = |key: &str, message: String| faults.push(Diagnostic::new(vec![key.into()], message));
    let architectures = || {
        let local = ARCHITECTURES.iter().map(|architecture| architecture.name);
        local.chain([CloudSection::ARCHITECTURE])
    };
    match Architecture::by_name(&options.architecture) {
        Some(_) => {}
        None if options.architecture.is_empty() => {
            let names: Vec<&str> = architectures().collect();
            fault("architecture", format!("is missing or empty: must be one of {}", names.join(", ")));
        }
        None => fault("architecture", not_one_of(&options.architecture, "an architecture", architectures())),
    }
    if options.snapshot.as_os_str().is_empty() {
        fault("snapshot", "is missing or empty: must be the folder of a Hugging Face snapshot".to_owned());
    }
    if let Some(message) = random_name(&options.snapshot).and_then(|preset| wrong_preset(preset, options)) {
        fault("snapshot", message);
    }
    if !is_device_name(&options.device) {
        fault("device", format!("{:?} is not a device: must be {DEVICES}", options.device));
    }
    if !DTYPES.iter().any(|(name, _)| *name == options.dtype) {
        fault("dtype", not_one_of(&options.dtype, "a number format", DTYPES.iter().map(|(name, _)| *name)));
    }
    if !DECODES.contains(&options.decode.as_str()) {
        fault("decode", not_one_of(&options.decode, "a way to decode", DECODES));
    }
    if options.dtype == FP8 {
        faults.extend(check_fp8(options));
    }
    faults.extend(out_of_range([
        ("max_batch", options.max_batch as u64, MAX_BATCH),
        ("max_delay_ms", options.max_delay_ms, MAX_DELAY_MS),
        ("queue_capacity", options.queue_capacity as u64, QUEUE_CAPACITY),
        ("replicas", options.replicas as u64, REPLICAS),
        ("batch_recovery_s", options.batch_recovery_s, BATCH_RECOVERY_S),
    ]));
    faults.extend(check_graph_batches(options));
    faults.extend(check_heads(options, tasks));
    faults
}

fn wrong_preset(name: &str, options: &ModelOptions) -> Option<String> {
    let Some(preset) = Preset::by_name(name) else {
        return Some(not_one_of(name, "a preset", PRESETS.iter().map(|preset| preset.name)));
    };
    let architecture = preset.architecture;
    (architecture != options.architecture).then(|| {
        format!(
            "the preset {name:?} is of another architecture: must be with architecture = {architecture:?}"
        )
    })
}

/// Checks `graph_batches`. Sizes above the largest batch would only take memory.
fn check_graph_batches(options: &ModelOptions) -> Option<Diagnostic> {
    let sizes = &options.graph_batches;
    let ascend = sizes.windows(2).all(|pair| pair[0] < pair[1]);
    let in_range = sizes.iter().all(|size| (1..=options.max_batch).contains(size));
    let message = || {
        let max_batch = options.max_batch;
        format!("{sizes:?} cannot be used: must be ascending batch sizes, from 1 to max_batch ({max_batch})")
    };
    (!ascend || !in_range).then(|| Diagnostic::new(vec!["graph_batches".into()], message()))
}

/// Checks `fp8`, as far as the file shows that it is not supported: the device is not looked at.
fn check_fp8(options: &ModelOptions) -> Option<Diagnostic> {
    let message = if options.device == "cpu" {
        "\"fp8\" needs a GPU of compute capability 8.9 or newer (Ada, Hopper), not device \"cpu\": choose \"bf16\""
        .to_owned()
    } else if Architecture::by_name(&options.architecture).is_some_and(|known| !known.has_fp8()) {
        format!("\"fp8\" is not for architecture {}: choose \"bf16\"", options.architecture)
    } else {
        return None;
    };
    Some(Diagnostic::new(vec!["dtype".into()], message))
}

fn check_heads(options: &ModelOptions, tasks: &BTreeSet<String>) -> Vec<Diagnostic> {
    let mut faults = Vec::new();
    for (task, file) in options.heads() {
        let path = || vec![HEADS.name.into(), task.as_str().into()];
        if !tasks.contains(&task) {
            let message = not_one_of(&task, "a configured task", tasks.iter().map(String::as_str));
            faults.push(Diagnostic::new(path(), message));
        }
        if file.as_os_str().is_empty() {
            faults.push(Diagnostic::new(path(), "is empty: must be a file in the snapshot's folder"));
        }
    }
    faults
}
