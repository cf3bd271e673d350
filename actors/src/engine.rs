//! The engine: starts the actors of a process, changes the plan that they answer by, and stops them.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Arbiter};
use arc_swap::ArcSwap;
use concord_models::{ImageLimits, MemoryEstimate, ModelOptions};
use concord_policy::Policy;

use crate::cache::{Cache, CacheSection, MemoryStore};
use crate::cloud::{CloudHandle, CloudSection};
use crate::fatal::Fatal;
use crate::load_error::LoadError;
use crate::loading::Loading;
use crate::metrics::Metrics;
use crate::model::{LoadedModel, ModelHandle, Running};
use crate::pixel_budget::PixelBudget;
use crate::plan::{Plan, RunningModels};
use crate::pool::{Lane, Pool};
use crate::router::{Admission, RouteError, Router, Shared, SingleFlight};
use crate::startup::{Startup, StartupStatus};

pub use crate::model::Loader;

/// The options that the actors are started with; changing them needs a restart.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// The sections `[models.NAME]` by name.
    pub models: BTreeMap<String, ModelOptions>,
    /// The sections `[models.NAME]` of models behind a server, by name.
    pub clouds: BTreeMap<String, CloudSection>,
    /// The folder from which relative snapshot paths start.
    pub base: PathBuf,
    /// The section `[cache]`.
    pub cache: CacheSection,
    /// The limits of decoding an image.
    pub image_limits: ImageLimits,
    /// The most pixels of all images that are decoded at once.
    pub max_pixels_in_flight: u64,
    /// The most requests in flight at once.
    pub max_in_flight: usize,
    /// The number of cores to compute on; 0: all.
    pub cpu_threads: usize,
}

/// The error of actors that cannot be started: no threads, or metrics that cannot be registered.
#[derive(Debug, thiserror::Error)]
#[error("the actors cannot be started: {0}")]
pub struct StartError(String);

/// A running model's description for people.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Its name in `ensemble.toml`.
    pub name: String,
    /// The options that it was started with.
    pub options: ModelOptions,
    /// The device of each replica.
    pub devices: Vec<String>,
    /// The number format.
    pub dtype: &'static str,
    /// The memory that each replica was estimated to take of its device; `None` where its files did not say.
    pub memory: Option<MemoryEstimate>,
    /// The number of its parameters.
    pub parameters: i64,
    /// The digest of its snapshot, in hexadecimal digits.
    pub digest: String,
}

impl ModelInfo {
    /// Returns every device that one of its replicas is on, with commas between them.
    pub fn device(&self) -> String {
        let mut devices: Vec<&str> = Vec::new();
        for device in &self.devices {
            if !devices.contains(&device.as_str()) {
                devices.push(device);
            }
        }
        devices.join(", ")
    }
}

/// The actors of a process. Models are loaded after it is created, so that a server can already answer that
/// it is not ready.
#[derive(Debug)]
pub struct Engine {
    options: EngineOptions,
    shared: Arc<Shared>,
    memory: MemoryStore,
    fatal: Fatal,
    /// The thread of the Model and Cloud actors, which only pass on what others compute.
    arbiter: Arbiter,
    /// Held during a change of the plan: one at a time.
    changing: Mutex<()>,
}

impl Engine {
    /// Creates the actors without models: their routers answer that they are not ready. Must be called where
    /// an actix system runs.
    ///
    /// # Errors
    /// When the operating system cannot start threads.
    pub fn new(options: EngineOptions) -> Result<Arc<Self>, StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError(error.to_string());
        let metrics = Metrics::new().map_err(|error| failed(&error))?;
        let pool = Pool::new(pool_threads(&options)).map_err(|error| failed(&error))?;
        let memory = MemoryStore::new(&options.cache);
        let shared = Shared {
            plan: ArcSwap::default(),
            running: OnceLock::new(),
            is_ready: AtomicBool::new(false),
            startup: Startup::default(),
            single_flight: SingleFlight::default(),
            admission: Admission::new(options.max_in_flight, &metrics.in_flight),
            pool,
            pixels: PixelBudget::new(options.max_pixels_in_flight),
            metrics,
            image_limits: options.image_limits,
        };
        Ok(Arc::new(Self {
            options,
            shared: Arc::new(shared),
            memory,
            fatal: Fatal::default(),
            arbiter: Arbiter::new(),
            changing: Mutex::new(()),
        }))
    }

    /// Loads every model, each replica on a thread of its own, prepares `tasks`, warms up and begins to
    /// answer. Blocks meanwhile. `on_loaded` is called with each model's name and how long it took.
    ///
    /// # Errors
    /// When models do not fit, do not load or cannot answer a task: all of those.
    pub fn load(
        &self,
        tasks: &BTreeMap<String, Policy>,
        loader: &Loader,
        on_loaded: impl FnMut(&str, Duration),
    ) -> Result<(), LoadError> {
        let cpu_threads = model_threads(&self.options);
        let (metrics, startup) = (&self.shared.metrics, &self.shared.startup);
        let loading = Loading {
            models: &self.options.models,
            base: &self.options.base,
            loader,
            cpu_threads,
            startup,
            metrics,
        };
        let loaded = loading.run(on_loaded)?;
        let arbiter = self.arbiter.handle();
        let max_scratch_bytes = self.options.image_limits.max_scratch_bytes;
        let running = Running {
            arbiter: &arbiter,
            metrics,
            fatal: &self.fatal,
            startup,
            cpu_threads,
            max_scratch_bytes,
        };
        let start = |(name, loaded): (String, LoadedModel)| {
            let options = &self.options.models[&name];
            let name = Arc::<str>::from(name);
            let handle = ModelHandle::start(&name, loaded, options, &running);
            (name, handle)
        };
        // A second call changes nothing: the models are those of the first.
        let models: BTreeMap<_, _> = loaded.into_iter().map(start).collect();
        let running = self.start_clouds(RunningModels { models, ..RunningModels::default() })?;
        let _running = self.shared.running.get_or_init(|| running);
        let asks = |policy: &&Policy, model: &str| policy.members().any(|member| **member.model() == *model);
        for model in self.local_models() {
            model.announce_warm_up(tasks.values().filter(|policy| asks(policy, model.name())).count());
        }
        self.apply(tasks, &self.options.models)?;
        self.warm_up()?;
        startup.finish();
        self.set_ready(true);
        Ok(())
    }

    /// Runs the batch sizes that requests will bring in every model, one after the other.
    fn warm_up(&self) -> Result<(), LoadError> {
        let plan = self.shared.plan.load_full();
        let mut failures = Vec::new();
        for model in self.local_models() {
            // Any task will do; a model that no task asks needs no warm-up.
            let Some(task) = plan.prepared_in(model.name()) else { continue };
            if let Err(failure) = model.warm_up(task) {
                failures.push((model.name().to_string(), failure));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(LoadError::of(failures)) }
    }

    /// Replaces the policies from the next request on; requests in flight keep the policy that they came
    /// under. Of `models` only the heads count. Blocks while text embeddings are computed and heads are read.
    ///
    /// # Errors
    /// When a model cannot answer a task that asks it; nothing has changed then.
    pub fn apply(
        &self,
        tasks: &BTreeMap<String, Policy>,
        models: &BTreeMap<String, ModelOptions>,
    ) -> Result<(), LoadError> {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let none = RunningModels::default();
        let running = self.shared.running.get().unwrap_or(&none);
        let current = self.shared.plan.load_full();
        let plan = Plan::prepare(tasks, running, models, &self.options.base, &current)?;
        self.shared.plan.store(Arc::new(plan));
        Ok(())
    }

    /// Starts a router, with its cache actor, on the calling thread's arbiter.
    pub fn router(&self) -> Addr<Router> {
        let cache = Cache::new(&self.options.cache, &self.memory, &self.shared.metrics).start();
        Router::new(Arc::clone(&self.shared), cache).start()
    }

    /// Returns whether requests are answered.
    pub fn is_ready(&self) -> bool {
        self.shared.is_ready.load(Ordering::Acquire) && self.fatal.get().is_none()
    }

    /// Returns the progress of the start; it is meaningful until requests are answered.
    pub fn startup(&self) -> StartupStatus {
        self.shared.startup.status()
    }

    /// Sets whether requests are answered.
    fn set_ready(&self, ready: bool) {
        self.shared.is_ready.store(ready, Ordering::Release);
        self.shared.metrics.ready.set(f64::from(u8::from(ready)));
    }

    /// Returns the plan that requests are answered by at this moment.
    pub fn plan(&self) -> Arc<Plan> {
        self.shared.plan.load_full()
    }

    /// Returns the running models, by name.
    pub fn models(&self) -> Vec<ModelInfo> {
        let info = |model: &ModelHandle| ModelInfo {
            name: model.name().to_string(),
            options: (*model.options).clone(),
            devices: model.replicas().iter().map(|replica| replica.device.clone()).collect(),
            dtype: model.dtype,
            memory: model.memory,
            parameters: model.parameters,
            digest: crate::digest::Digest::from(model.snapshot).to_string(),
        };
        self.local_models().map(info).collect()
    }

    fn local_models(&self) -> impl Iterator<Item = &ModelHandle> {
        self.shared.running.get().into_iter().flat_map(|running| running.models.values())
    }

    /// Starts a Cloud actor for each model behind a server, and notes the names of those that are off.
    fn start_clouds(&self, mut running: RunningModels) -> Result<RunningModels, LoadError> {
        let mut failures = Vec::new();
        for (name, section) in &self.options.clouds {
            if !section.is_on() {
                let variable = section.api_key_env.as_deref().unwrap_or_default();
                tracing::info!(
                    model = name,
                    variable,
                    "the model is off: the variable that holds its API key is not set"
                );
                running.off.insert(name.clone());
                continue;
            }
            let (cache, arbiter) = (&self.options.cache, self.arbiter.handle());
            match CloudHandle::start(name, section, cache, &arbiter, &self.shared.metrics) {
                Ok(cloud) => _ = running.clouds.insert(Arc::clone(cloud.name()), cloud),
                Err(failure) => failures.push((name.clone(), failure)),
            }
        }
        if failures.is_empty() { Ok(running) } else { Err(LoadError { failures }) }
    }

    /// Refuses a request whose image has not been read yet, and counts it, if a new image for the task would not
    /// be answered within `time`. Where reading it is not costly, this is done only under heavy overload, since the
    /// answer may be in the cache. Admits nothing.
    ///
    /// # Errors
    /// When the models have too much to do.
    pub fn refuse_early(&self, task: &str, time: Duration, is_costly: bool) -> Result<(), RouteError> {
        let plan = self.shared.plan.load();
        // Whatever the image's size, it would have to share the models with the small ones.
        let capacity = plan.task(task).map(|task| task.capacities.of(Lane::Small));
        let refusal = capacity.and_then(|it| it.refuse_early(Instant::now(), time, is_costly));
        let Some(overloaded) = refusal else {
            return Ok(());
        };
        let error = RouteError::from(overloaded);
        self.shared.metrics.requests.with_label_values(&[task, "0", error.outcome()]).inc();
        Err(error)
    }

    /// Returns the options that the actors were started with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// Returns the metrics of the process.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Returns the condition that this process cannot go on after.
    pub fn fatal(&self) -> &Fatal {
        &self.fatal
    }
}

/// Lets the models' threads end after what is queued.
impl Drop for Engine {
    fn drop(&mut self) {
        for model in self.local_models() {
            model.close();
        }
        self.arbiter.stop();
    }
}

/// Returns the number of cores to compute on.
fn cores(options: &EngineOptions) -> usize {
    match options.cpu_threads {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    }
}

/// Returns how many replicas compute on the CPU.
fn replicas_on_cpu(options: &EngineOptions) -> usize {
    let has_gpu = concord_models::libtorch::cuda_devices() > 0;
    let on_cpu = |model: &&ModelOptions| model.device == "cpu" || (model.device == "auto" && !has_gpu);
    options.models.values().filter(on_cpu).map(|model| model.replicas).sum()
}

/// Returns the number of threads for one operation of a model: the cores are shared out among the replicas
/// that compute on them, because threads that wait for each other at every operation cost more than they
/// bring when something else wants their cores.
fn model_threads(options: &EngineOptions) -> usize {
    (cores(options) / replicas_on_cpu(options).max(1)).max(1)
}

/// Returns the number of threads for decoding and resizing: all cores where the models are elsewhere,
/// otherwise half of them.
fn pool_threads(options: &EngineOptions) -> usize {
    let share = if replicas_on_cpu(options) == 0 { 1 } else { 2 };
    (cores(options) / share).max(1)
}
