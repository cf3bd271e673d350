//! The loading of every replica of every model, each on a thread of its own, after its placement on a device.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use concord_models::presets::random_name;
use concord_models::{
    DeviceRequest, MemoryEstimate, ModelOptions, free_host_memory, libtorch, set_cpu_threads, snapshot_digest,
};
use concord_policy::VoteFailure;

use crate::load_error::LoadError;
use crate::metrics::Metrics;
use crate::model::{LoadedModel, LoadedReplica, Loader};
use crate::placement::{Devices, Gpus, PlacementRequest, place_replicas};
use crate::startup::Startup;

/// The models to be loaded, and everything that loading needs.
pub(crate) struct Loading<'a> {
    pub(crate) models: &'a BTreeMap<String, ModelOptions>,
    pub(crate) base: &'a Path,
    pub(crate) loader: &'a Loader,
    pub(crate) cpu_threads: usize,
    pub(crate) startup: &'a Startup,
    pub(crate) metrics: &'a Metrics,
}

/// The result of one loading thread.
enum Part {
    Replica(usize, Result<LoadedReplica, VoteFailure>),
    /// The digest of the snapshot, once for all replicas.
    Digest(Result<[u8; 32], VoteFailure>),
}

/// The parts of a model that have been loaded by now.
#[derive(Default)]
struct Parts {
    replicas: BTreeMap<usize, LoadedReplica>,
    digest: Option<[u8; 32]>,
}

impl Loading<'_> {
    /// Loads all models. `on_loaded` is called with each model's name and how long it took, replicas
    /// included.
    ///
    /// # Errors
    /// When models do not fit: all of those; otherwise, when models do not load: all of those.
    pub(crate) fn run(
        &self,
        mut on_loaded: impl FnMut(&str, Duration),
    ) -> Result<BTreeMap<String, LoadedModel>, LoadError> {
        let requests = self.requests()?;
        let devices = place_replicas(&requests, &free_memory_of_gpus(&requests)).map_err(LoadError::of)?;
        warn_of_host_memory(&requests);
        self.show_memory(&requests, &devices);
        self.startup.announce_loads(self.models.values().map(|options| options.replicas).sum());
        let (loaded, done) = mpsc::channel();
        let mut failures: Vec<(String, VoteFailure)> = Vec::new();
        let mut models: BTreeMap<&str, Parts> = BTreeMap::new();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for request in &requests {
                let (name, options) = (request.name, request.options);
                for (index, device) in devices.get(name).into_iter().flatten().enumerate() {
                    let (loaded, device) = (loaded.clone(), device.clone());
                    scope.spawn(move || {
                        set_cpu_threads(self.cpu_threads);
                        let options = ModelOptions { device, ..options.clone() };
                        let replica = LoadedReplica::load(name, &options, self.base, self.loader);
                        self.startup.loaded();
                        // The receiver lives as long as this scope.
                        let _received = loaded.send((name, Part::Replica(index, replica)));
                    });
                }
                let loaded = loaded.clone();
                scope.spawn(move || {
                    let digest = snapshot_digest(self.base, &options.snapshot);
                    let digest = digest.map_err(|error| VoteFailure::new(error.to_string()));
                    let _received = loaded.send((name, Part::Digest(digest)));
                });
            }
            drop(loaded);
            for (name, part) in done {
                let parts = models.entry(name).or_default();
                let failure = match part {
                    Part::Replica(index, Ok(replica)) => {
                        parts.replicas.insert(index, replica);
                        None
                    }
                    Part::Digest(Ok(digest)) => {
                        parts.digest = Some(digest);
                        None
                    }
                    Part::Replica(_, Err(failure)) | Part::Digest(Err(failure)) => Some(failure),
                };
                match failure {
                    // Replicas fail for the same reason.
                    Some(failure) if failures.iter().all(|(failed, _)| failed != name) => {
                        failures.push((name.to_owned(), failure));
                    }
                    None if parts.digest.is_some() && parts.replicas.len() == self.models[name].replicas => {
                        on_loaded(name, started.elapsed());
                    }
                    Some(_) | None => {}
                }
            }
        });
        if !failures.is_empty() {
            return Err(LoadError::of(failures));
        }
        let memory = |name: &str| requests.iter().find(|request| request.name == name)?.memory;
        let whole = |(name, parts): (&str, Parts)| {
            let mut replicas = parts.replicas.into_values();
            let (first, snapshot) = (replicas.next()?, parts.digest?);
            let others = replicas.collect();
            Some((name.to_owned(), LoadedModel { first, others, snapshot, memory: memory(name) }))
        };
        Ok(models.into_iter().filter_map(whole).collect())
    }

    /// Returns each model's request for devices, with the memory that it needs.
    fn requests(&self) -> Result<Vec<PlacementRequest<'_>>, LoadError> {
        let (mut requests, mut failures) = (Vec::new(), Vec::new());
        for (name, options) in self.models {
            if let Some(preset) = random_name(&options.snapshot) {
                tracing::warn!(
                    model = name,
                    preset,
                    "the model's weights are random: its answers mean nothing, use it for measuring only"
                );
            }
            let memory = MemoryEstimate::of(options, self.base)
                .inspect_err(
                    |error| tracing::debug!(model = name, %error, "the model's memory cannot be estimated"),
                )
                .ok();
            match DeviceRequest::of(&options.device) {
                Ok(device) => requests.push(PlacementRequest { name, options, device, memory }),
                Err(error) => failures.push((name.clone(), VoteFailure::new(error.to_string()))),
            }
        }
        if failures.is_empty() { Ok(requests) } else { Err(LoadError::of(failures)) }
    }

    fn show_memory(&self, requests: &[PlacementRequest<'_>], devices: &Devices<'_>) {
        for request in requests {
            let Some(memory) = request.memory else { continue };
            for device in devices.get(request.name).into_iter().flatten() {
                let parts =
                    [("parameters", memory.parameter_bytes), ("activations", memory.activation_bytes)];
                for (part, bytes) in parts {
                    let gauge = self.metrics.model_memory.with_label_values(&[request.name, device, part]);
                    gauge.add(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
        }
    }
}

/// Returns the free memory of the GPUs that may be used. The others are left alone: a query creates a context
/// on them, of half a gigabyte.
fn free_memory_of_gpus(requests: &[PlacementRequest<'_>]) -> Gpus {
    let any = requests.iter().any(|request| request.device == DeviceRequest::AnyGpu);
    let named = |gpu: &usize| requests.iter().any(|request| request.device == DeviceRequest::Gpu(*gpu));
    let free = |gpu: usize| match libtorch::device_memory(gpu) {
        Ok(memory) => Some(memory.free_bytes),
        Err(error) => {
            tracing::warn!(gpu, %error, "the GPU's free memory is not known: whether models fit is not checked");
            None
        }
    };
    let usable = (0..libtorch::cuda_devices()).filter(|gpu| any || named(gpu));
    usable.map(|gpu| (gpu, free(gpu))).collect()
}

/// Warns where the models on the CPU may not fit into memory. It is no error: memory can be overcommitted and
/// swapped, so it is only likely to end badly.
fn warn_of_host_memory(requests: &[PlacementRequest<'_>]) {
    let on_cpu = requests.iter().filter(|request| request.device == DeviceRequest::Cpu);
    let bytes = |request: &PlacementRequest<'_>| {
        let replica = request.memory.map_or(0, |memory| memory.total());
        replica.saturating_mul(request.options.replicas as u64)
    };
    let needed: u64 = on_cpu.map(bytes).sum();
    if let Some(available) = free_host_memory()
        && needed > available
    {
        tracing::warn!(
            needed_bytes = needed,
            available_bytes = available,
            "the models on the CPU may not fit into its memory: change their dtype, max_batch, replicas or device"
        );
    }
}
