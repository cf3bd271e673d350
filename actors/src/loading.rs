//! Every replica of every model: where it goes, whether it fits, and its loading, each on a thread of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use concord_models::presets::random_name;
use concord_models::{
    DeviceRequest, MemoryEstimate, ModelOptions, free_host_memory, libtorch, set_cpu_threads, snapshot_digest,
};

use crate::engine::LoadError;
use crate::metrics::Metrics;
use crate::model::{LoadedModel, Loader, Seat};
use crate::spread::{Devices, Gpus, Guest, spread};
use crate::startup::Startup;
use concord_policy::VoteFailure;

/// What loading needs beside the models.
pub(crate) struct Loading<'a> {
    pub(crate) models: &'a BTreeMap<String, ModelOptions>,
    pub(crate) base: &'a Path,
    pub(crate) loader: &'a Loader,
    pub(crate) cpu_threads: usize,
    pub(crate) startup: &'a Startup,
    pub(crate) metrics: &'a Metrics,
}

/// What a thread has loaded.
enum Part {
    Replica(usize, Result<Seat, VoteFailure>),
    /// Of the snapshot, once for all replicas.
    Digest(Result<[u8; 32], VoteFailure>),
}

/// What has been loaded of a model.
#[derive(Default)]
struct Parts {
    seats: BTreeMap<usize, Seat>,
    digest: Option<[u8; 32]>,
}

impl Loading<'_> {
    /// Loads them all. `on_loaded` is told each model's name and how long it took, replicas included.
    ///
    /// # Errors
    /// Every model that does not fit; where all do, every model that does not load.
    pub(crate) fn run(
        &self,
        mut on_loaded: impl FnMut(&str, Duration),
    ) -> Result<BTreeMap<String, LoadedModel>, LoadError> {
        let guests = self.guests()?;
        let devices = spread(&guests, &free_memory_of_gpus(&guests)).map_err(LoadError::of)?;
        warn_of_host_memory(&guests);
        self.show_memory(&guests, &devices);
        self.startup.expect_loads(self.models.values().map(|options| options.replicas).sum());
        let (loaded, done) = mpsc::channel();
        let mut failures: Vec<(String, VoteFailure)> = Vec::new();
        let mut models: BTreeMap<&str, Parts> = BTreeMap::new();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for guest in &guests {
                let (name, options) = (guest.name, guest.options);
                for (index, device) in devices.get(name).into_iter().flatten().enumerate() {
                    let (loaded, device) = (loaded.clone(), device.clone());
                    scope.spawn(move || {
                        set_cpu_threads(self.cpu_threads);
                        let options = ModelOptions { device, ..options.clone() };
                        let seat = Seat::load(name, &options, self.base, self.loader);
                        self.startup.loaded();
                        // The receiver lives as long as this scope.
                        let _received = loaded.send((name, Part::Replica(index, seat)));
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
                    Part::Replica(index, Ok(seat)) => {
                        parts.seats.insert(index, seat);
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
                    None if parts.digest.is_some() && parts.seats.len() == self.models[name].replicas => {
                        on_loaded(name, started.elapsed());
                    }
                    Some(_) | None => {}
                }
            }
        });
        if !failures.is_empty() {
            return Err(LoadError::of(failures));
        }
        let memory = |name: &str| guests.iter().find(|guest| guest.name == name)?.memory;
        let whole = |(name, parts): (&str, Parts)| {
            let mut seats = parts.seats.into_values();
            let (seat, snapshot) = (seats.next()?, parts.digest?);
            let other_seats = seats.collect();
            Some((name.to_owned(), LoadedModel { seat, other_seats, snapshot, memory: memory(name) }))
        };
        Ok(models.into_iter().filter_map(whole).collect())
    }

    /// The models with what they wish and need.
    fn guests(&self) -> Result<Vec<Guest<'_>>, LoadError> {
        let (mut guests, mut failures) = (Vec::new(), Vec::new());
        for (name, options) in self.models {
            if let Some(preset) = random_name(&options.snapshot) {
                tracing::warn!(
                    model = name,
                    preset,
                    "its weights are random: for measuring only, its answers mean nothing"
                );
            }
            let memory = MemoryEstimate::of(options, self.base)
                .inspect_err(|error| tracing::debug!(model = name, %error, "its memory cannot be estimated"))
                .ok();
            match DeviceRequest::of(&options.device) {
                Ok(wish) => guests.push(Guest { name, options, wish, memory }),
                Err(error) => failures.push((name.clone(), VoteFailure::new(error.to_string()))),
            }
        }
        if failures.is_empty() { Ok(guests) } else { Err(LoadError::of(failures)) }
    }

    fn show_memory(&self, guests: &[Guest<'_>], devices: &Devices<'_>) {
        for guest in guests {
            let Some(memory) = guest.memory else { continue };
            for device in devices.get(guest.name).into_iter().flatten() {
                let parts =
                    [("parameters", memory.parameter_bytes), ("activations", memory.activation_bytes)];
                for (part, bytes) in parts {
                    let gauge = self.metrics.model_memory.with_label_values(&[guest.name, device, part]);
                    gauge.add(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
            }
        }
    }
}

/// Of the GPUs that may be used. The others are not asked: asking makes a context on them, of half a gigabyte.
fn free_memory_of_gpus(guests: &[Guest<'_>]) -> Gpus {
    let any = guests.iter().any(|guest| guest.wish == DeviceRequest::AnyGpu);
    let named = |gpu: &usize| guests.iter().any(|guest| guest.wish == DeviceRequest::Gpu(*gpu));
    let free = |gpu: usize| match libtorch::device_memory(gpu) {
        Ok(memory) => Some(memory.free_bytes),
        Err(error) => {
            tracing::warn!(gpu, %error, "its free memory is not known: whether models fit is not checked");
            None
        }
    };
    let usable = (0..libtorch::cuda_devices()).filter(|gpu| any || named(gpu));
    usable.map(|gpu| (gpu, free(gpu))).collect()
}

/// On the CPU memory can be overcommitted and swapped, so that what does not fit is only likely to end badly.
fn warn_of_host_memory(guests: &[Guest<'_>]) {
    let on_cpu = guests.iter().filter(|guest| guest.wish == DeviceRequest::Cpu);
    let bytes = |guest: &Guest<'_>| {
        let replica = guest.memory.map_or(0, |memory| memory.total());
        replica.saturating_mul(guest.options.replicas as u64)
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
