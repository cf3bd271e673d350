//! A server in this process whose real models can be made to panic or to wait.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};

use concord::config::Ensemble;
use concord::serve::{ServeError, ServeOptions, serve};
use concord::telemetry::Sampling;
use concord_models::parity::Fixture;
use concord_models::{
    GenerateRequest, Generated, Generator, Model, ModelError, Pixels, Placement, Preprocessor, Scores,
    TaskId, TaskLabels, load_model,
};
use tch::Tensor;
use tokio::sync::Notify;

use super::server::Endpoint;

/// What happens to forwards, of all models of a server.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// So many of the next batches panic.
    panics: AtomicUsize,
    /// Before forwards.
    voting: Gate,
    /// Before texts.
    pub(crate) writing: Gate,
    /// Batches that have begun since the start.
    begun: AtomicUsize,
}

/// Lets everybody through, unless it is held.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    held: Mutex<bool>,
    released: Condvar,
}

impl Gate {
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

impl Trouble {
    pub(crate) fn panic_in_the_next(&self, batches: usize) {
        self.panics.store(batches, Ordering::Release);
    }

    pub(crate) fn hold(&self) {
        self.voting.hold();
    }

    pub(crate) fn release(&self) {
        self.voting.release();
    }

    pub(crate) fn begun(&self) -> usize {
        self.begun.load(Ordering::Acquire)
    }

    fn strike(&self) {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.voting.pass();
        let one_less = |panics: usize| panics.checked_sub(1);
        if self.panics.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok() {
            panic!("as the test wants it");
        }
    }
}

/// A real model in front of which trouble stands.
#[derive(Debug)]
struct Troubled {
    model: Box<dyn Model>,
    trouble: Arc<Trouble>,
}

impl Model for Troubled {
    fn preprocessor(&self) -> &Preprocessor {
        self.model.preprocessor()
    }

    fn parameters(&self) -> i64 {
        self.model.parameters()
    }

    fn placement(&self) -> Placement {
        self.model.placement()
    }

    fn prepare(&mut self, id: TaskId, task: &TaskLabels) -> Result<(), ModelError> {
        self.model.prepare(id, task)
    }

    fn forget(&mut self, id: TaskId) {
        self.model.forget(id);
    }

    fn classify(&self, id: TaskId, images: &[&Pixels]) -> Result<Vec<Scores>, ModelError> {
        self.trouble.strike();
        self.model.classify(id, images)
    }

    fn generator(&self) -> Option<&dyn Generator> {
        self.model.generator().map(|_| self as &dyn Generator)
    }

    fn reproduce(&self, fixture: &Fixture) -> Result<BTreeMap<String, Tensor>, ModelError> {
        self.model.reproduce(fixture)
    }
}

impl Generator for Troubled {
    fn takes_questions(&self) -> bool {
        self.model.generator().unwrap().takes_questions()
    }

    fn generate(
        &self,
        image: &Pixels,
        request: &GenerateRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated, ModelError> {
        self.trouble.writing.pass();
        self.model.generator().unwrap().generate(image, request, on_text)
    }
}

/// The server; it ends when it is dropped.
pub(crate) struct TroubledServer {
    pub(crate) client: Endpoint,
    pub(crate) trouble: Arc<Trouble>,
    stop: Arc<Notify>,
    thread: Option<std::thread::JoinHandle<Result<(), ServeError>>>,
}

impl TroubledServer {
    pub(crate) fn start(ensemble: &Path) -> Self {
        let ensemble = Ensemble::load(ensemble).unwrap();
        let trouble = Arc::new(Trouble::default());
        let stop = Arc::new(Notify::new());
        let troubled = Arc::clone(&trouble);
        let options = ServeOptions {
            ensemble,
            listen: Some("127.0.0.1:0".to_owned()),
            file: None,
            sampling: Sampling::none(),
            loader: Arc::new(move |_: &str, options: &_, base: &_| {
                let model = load_model(options, base)?;
                Ok(Box::new(Troubled { model, trouble: Arc::clone(&troubled) }) as Box<dyn Model>)
            }),
            stop: Arc::clone(&stop),
        };
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let on_ready = move |address: std::net::SocketAddr, _: &_| ready.send(address).unwrap();
            actix::System::new().block_on(serve(options, on_ready))
        });
        let address = address.recv().unwrap();
        Self { client: Endpoint::new(&format!("http://{address}")), trouble, stop, thread: Some(thread) }
    }
}

impl Drop for TroubledServer {
    fn drop(&mut self) {
        self.trouble.release();
        self.trouble.writing.release();
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.unwrap().is_ok());
        }
    }
}
