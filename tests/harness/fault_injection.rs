//! A server in this process whose real models can be made to panic, to wait, or to run out of memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use concord::config::Ensemble;
use concord::serve::{ServeError, ServeOptions, serve};
use concord::telemetry::{LogCounters, Sampling};
use concord_models::parity::Fixture;
use concord_models::{
    GenerateRequest, Generated, Generator, LoadedModelInfo, Model, ModelError, ModelOptions, Pixels, TaskId,
    TaskSpec, load_model,
};
use concord_policy::ModelOutput;
use tch::Tensor;
use tokio::sync::Notify;

use super::redis::free_port;
use super::server::Endpoint;

/// The faults that are injected into the forward passes of all models of a server.
#[derive(Debug)]
pub(crate) struct InjectedFaults {
    /// The number of next batches that panic.
    panics: AtomicUsize,
    /// The number of images that there is memory for in a batch.
    memory: AtomicUsize,
    /// True if models warm up with batches of every power of two, as on a GPU, rather than as they do by
    /// themselves.
    warms_up: AtomicBool,
    /// True if forward passes run without their CUDA graphs.
    without_graphs: AtomicBool,
    /// The sizes of all batches that have started.
    sizes: Mutex<Vec<usize>>,
    /// Holds forward passes back.
    voting: HoldPoint,
    /// Holds texts back.
    pub(crate) generating: HoldPoint,
    /// The number of batches that have started.
    started: AtomicUsize,
}

/// A point in the code where threads wait while it is held.
#[derive(Debug, Default)]
pub(crate) struct HoldPoint {
    held: Mutex<bool>,
    released: Condvar,
}

impl HoldPoint {
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    fn pass(&self) {
        let mut held = self.held.lock().unwrap();
        while *held {
            held = self.released.wait(held).unwrap();
        }
    }
}

/// No faults.
impl Default for InjectedFaults {
    fn default() -> Self {
        Self {
            panics: AtomicUsize::default(),
            memory: AtomicUsize::new(usize::MAX),
            warms_up: AtomicBool::default(),
            without_graphs: AtomicBool::default(),
            sizes: Mutex::default(),
            voting: HoldPoint::default(),
            generating: HoldPoint::default(),
            started: AtomicUsize::default(),
        }
    }
}

impl InjectedFaults {
    /// Limits the memory to this many images in a batch from now on.
    pub(crate) fn limit_memory(&self, images: usize) {
        self.memory.store(images, Ordering::Release);
    }

    /// Refuses every forward pass its CUDA graph from now on.
    pub(crate) fn refuse_graphs(&self) {
        self.without_graphs.store(true, Ordering::Release);
    }

    pub(crate) fn warm_up(&self) {
        self.warms_up.store(true, Ordering::Release);
    }

    /// Returns the sizes of the batches that have started since the last call.
    pub(crate) fn take_sizes(&self) -> Vec<usize> {
        std::mem::take(&mut self.sizes.lock().unwrap())
    }

    /// Fails if there is no memory. libtorch returns an error from its fallible functions and panics in the
    /// others: here the two alternate.
    fn allocate(&self, images: usize) -> Result<(), ModelError> {
        const CUDA: &str = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB\nbacktrace";
        const CPU: &str = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: \
                           you tried to allocate 2147483648 bytes. Error code 12 (Cannot allocate memory)\nbacktrace";
        let mut sizes = self.sizes.lock().unwrap();
        sizes.push(images);
        let panics = sizes.len().is_multiple_of(2);
        drop(sizes);
        if images <= self.memory.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = |text: &str| Err::<(), _>(tch::TchError::Torch(text.to_owned()));
        if panics {
            error(CUDA).unwrap();
        }
        Ok(error(CPU)?)
    }

    pub(crate) fn panic_in_next(&self, batches: usize) {
        self.panics.store(batches, Ordering::Release);
    }

    pub(crate) fn hold(&self) {
        self.voting.hold();
    }

    pub(crate) fn release(&self) {
        self.voting.release();
    }

    pub(crate) fn batches_started(&self) -> usize {
        self.started.load(Ordering::Acquire)
    }

    fn before_forward(&self) {
        self.started.fetch_add(1, Ordering::AcqRel);
        self.voting.pass();
        let one_less = |panics: usize| panics.checked_sub(1);
        if self.panics.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok() {
            panic!("injected by the test");
        }
    }
}

/// A real model with injected faults.
#[derive(Debug)]
struct FaultyModel {
    model: Box<dyn Model>,
    faults: Arc<InjectedFaults>,
    /// The forward passes without their graph that have not been reported yet.
    fallbacks: AtomicU64,
}

impl Model for FaultyModel {
    fn info(&self) -> &LoadedModelInfo {
        self.model.info()
    }

    fn prepare(&mut self, id: TaskId, task: &TaskSpec) -> Result<(), ModelError> {
        self.model.prepare(id, task)
    }

    fn forget(&mut self, id: TaskId) {
        self.model.forget(id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<ModelOutput>, ModelError> {
        self.faults.before_forward();
        self.faults.allocate(images.len())?;
        if self.faults.without_graphs.load(Ordering::Acquire) {
            self.fallbacks.fetch_add(1, Ordering::AcqRel);
        }
        self.model.classify(id, images)
    }

    fn generator(&self) -> Option<&dyn Generator> {
        self.model.generator().map(|_| self as &dyn Generator)
    }

    fn warm_up_batches(&self, options: &ModelOptions) -> Vec<usize> {
        if !self.faults.warms_up.load(Ordering::Acquire) {
            return self.model.warm_up_batches(options);
        }
        std::iter::successors(Some(2), |batch| Some(batch * 2))
            .take_while(|batch| *batch <= options.max_batch)
            .collect()
    }

    fn take_graph_fallbacks(&self) -> u64 {
        self.fallbacks.swap(0, Ordering::AcqRel)
    }

    fn parity_outputs(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        self.model.parity_outputs(fixture)
    }
}

impl Generator for FaultyModel {
    fn takes_questions(&self) -> bool {
        self.model.generator().unwrap().takes_questions()
    }

    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        self.faults.generating.pass();
        self.model.generator().unwrap().generate(image, request, on_text)
    }
}

/// A server whose models have injected faults; it ends when it is dropped.
pub(crate) struct FaultyServer {
    pub(crate) client: Endpoint,
    pub(crate) faults: Arc<InjectedFaults>,
    stop: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<Result<(), ServeError>>>,
}

impl FaultyServer {
    pub(crate) fn start(ensemble: &Path) -> Self {
        Self::start_in(ensemble, InjectedFaults::default())
    }

    /// Starts with faults that are there from the beginning.
    pub(crate) fn start_in(ensemble: &Path, faults: InjectedFaults) -> Self {
        let (mut server, address) = Self::listen(ensemble, faults, "127.0.0.1:0");
        server.client = Endpoint::new(&format!("http://{}", address.recv().unwrap()));
        server
    }

    /// Starts without waiting until it is ready, which the receiver is notified of.
    pub(crate) fn begin(ensemble: &Path, faults: InjectedFaults) -> (Self, mpsc::Receiver<SocketAddr>) {
        Self::listen(ensemble, faults, &format!("127.0.0.1:{}", free_port()))
    }

    fn listen(ensemble: &Path, faults: InjectedFaults, listen: &str) -> (Self, mpsc::Receiver<SocketAddr>) {
        let ensemble = Ensemble::load(ensemble).unwrap();
        let faults = Arc::new(faults);
        let stop = Arc::new(Notify::new());
        let shared_faults = Arc::clone(&faults);
        let options = ServeOptions {
            ensemble,
            listen: Some(listen.to_owned()),
            file: None,
            sampling: Sampling::none(),
            log_counters: LogCounters::default(),
            loader: Arc::new(move |_: &str, options: &_, base: &_| {
                let model = load_model(options, base)?;
                Ok(Box::new(FaultyModel {
                    model,
                    faults: Arc::clone(&shared_faults),
                    fallbacks: AtomicU64::default(),
                }) as Box<dyn Model>)
            }),
            stop: Arc::clone(&stop),
        };
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let on_ready = move |address, _: &_| ready.send(address).unwrap();
            actix::System::new().block_on(serve(options, on_ready))
        });
        let client = Endpoint::new(&format!("http://{listen}"));
        (Self { client, faults, stop, thread: Some(thread) }, address)
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.faults.release();
        self.faults.generating.release();
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.unwrap().is_ok());
        }
    }
}
