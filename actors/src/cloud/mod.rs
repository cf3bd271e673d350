//! The Cloud actor: a model behind somebody's server, which gives votes like any other, fails like any other, and costs
//! money.

mod answer;
mod chat;
mod client;
mod picture;
mod section;
mod spend;
mod systemone;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, ArbiterHandle, Context, Handler, Message, ResponseFuture};
use bytes::Bytes;
use concord_models::{RgbImage, TaskSpec};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::section::{CloudSection, Protocol};

use self::answer::{RemoteAnswer, Unreadable};
use self::chat::Form;
use self::client::{CallError, Remote};
use self::spend::Spend;
use crate::breaker::Breaker;
use crate::cache::CacheSection;
use crate::metrics::Metrics;
use crate::model::VoteReply;
use crate::voter::Wanted;
use concord_policy::{Cost, FailureKind, ModelOutput, VoteFailure};

/// Failures in a row until the server is left alone, and for how long.
const FAILURES_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_secs(30);
/// What is left of a request's time for the verdict without this vote.
const MARGIN: Duration = Duration::from_millis(20);

/// A running cloud model.
#[derive(Debug, Clone)]
pub(crate) struct CloudHandle {
    name: Arc<str>,
    section: Arc<CloudSection>,
    places: Arc<Semaphore>,
    address: Addr<Cloud>,
    metrics: Metrics,
}

/// A place among the requests to the server; given up on drop.
#[derive(Debug)]
pub(crate) struct CloudPlace {
    _permit: OwnedSemaphorePermit,
    depth: prometheus::IntGauge,
}

/// Asks the server about an image. Dropping it answers.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Question {
    task: Arc<TaskSpec>,
    /// JPEG in base64.
    image: String,
    place: CloudPlace,
    wanted: Wanted,
    preprocess: Duration,
}

/// The actor.
#[derive(Debug)]
struct Cloud(Arc<Server>);

/// What its requests share.
#[derive(Debug)]
struct Server {
    name: Arc<str>,
    section: Arc<CloudSection>,
    remote: Remote,
    spend: Spend,
    breaker: Mutex<Breaker>,
    /// Whether the server has answered without token probabilities: it is asked for JSON from then on.
    gives_no_probabilities: AtomicBool,
    metrics: Metrics,
}

impl CloudHandle {
    /// Starts the actor.
    ///
    /// # Errors
    /// When the key cannot be used.
    pub(crate) fn start(
        name: &str,
        section: &CloudSection,
        cache: &CacheSection,
        arbiter: &ArbiterHandle,
        metrics: &Metrics,
    ) -> Result<Self, VoteFailure> {
        let (name, section) = (Arc::<str>::from(name), Arc::new(section.clone()));
        let remote = Remote::new(&section).map_err(VoteFailure::new)?;
        let parts = (Arc::clone(&name), Arc::clone(&section), cache.clone(), metrics.clone());
        // Made on the actor's thread: the connection to Redis belongs to a runtime.
        let address = Cloud::start_in_arbiter(arbiter, move |_| {
            let (name, section, cache, metrics) = parts;
            let spend = Spend::new(&name, &section, &cache);
            let breaker = Mutex::new(Breaker::new(FAILURES_MAX, PAUSE));
            let gives_no_probabilities = AtomicBool::new(false);
            Cloud(Arc::new(Server { name, section, remote, spend, breaker, gives_no_probabilities, metrics }))
        });
        let places = Arc::new(Semaphore::new(section.max_in_flight));
        Ok(Self { name, section, places, address, metrics: metrics.clone() })
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) fn section(&self) -> &CloudSection {
        &self.section
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many requests are under way.
    pub(crate) fn depth(&self) -> usize {
        self.section.max_in_flight - self.places.available_permits()
    }

    /// A place, or at once the failure of a model that has none.
    pub(crate) fn reserve(&self) -> Result<CloudPlace, VoteFailure> {
        let permit = Arc::clone(&self.places).try_acquire_owned();
        let full = "as many requests to the server are under way as may be (max_in_flight)";
        let permit = permit.map_err(|_| VoteFailure::of(FailureKind::Busy, full))?;
        let depth = self.metrics.queue_depth.with_label_values(&[&*self.name]);
        depth.inc();
        Ok(CloudPlace { _permit: permit, depth })
    }

    /// Makes the image ready and sends the question; the caller is a thread of the CPU pool.
    pub(crate) fn submit(&self, task: &Arc<TaskSpec>, image: &RgbImage, place: CloudPlace, wanted: Wanted) {
        let started = Instant::now();
        match picture::encode(image, self.section.max_image_side) {
            Ok(image) => {
                let (task, preprocess) = (Arc::clone(task), started.elapsed());
                // The places bound what is in the mailbox. A question that it does not take answers by its drop.
                self.address.do_send(Question { task, image, place, wanted, preprocess });
            }
            Err(error) => wanted.reply.failed(format!("the image cannot be encoded: {error}")),
        }
    }
}

impl Drop for CloudPlace {
    fn drop(&mut self) {
        self.depth.dec();
    }
}

impl Actor for Cloud {
    type Context = Context<Self>;
}

impl Handler<Question> for Cloud {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, question: Question, _: &mut Self::Context) -> Self::Result {
        let server = Arc::clone(&self.0);
        Box::pin(async move { server.answer(question).await })
    }
}

impl Server {
    async fn answer(&self, question: Question) {
        let Question { task, image, place, wanted, preprocess } = question;
        let Wanted { ticket, trace, reply } = wanted;
        let started = Instant::now();
        let outcome = tokio::select! {
            outcome = self.vote(&task, &image, ticket.time_left()) => outcome,
            _unwanted = ticket.until_unwanted() => Err(VoteFailure::expired()),
        };
        let cost = Cost { queue: Duration::ZERO, preprocess, model: started.elapsed() };
        drop(place);
        reply.send(VoteReply { outcome, cost, batch: 1, trace });
    }

    async fn vote(&self, task: &TaskSpec, image: &str, left: Duration) -> Result<ModelOutput, VoteFailure> {
        if !self.breaker().allows(Instant::now()) {
            let reason = "the server failed several times in a row, and is left alone for now";
            return Err(VoteFailure::of(FailureKind::CircuitOpen, reason));
        }
        let Some(_reservation) = self.spend.reserve().await else {
            let reason = "what may be spent in an hour has been spent (max_usd_per_hour)";
            return Err(VoteFailure::of(FailureKind::OverBudget, reason));
        };
        let limit = Duration::from_millis(self.section.timeout_ms).min(left.saturating_sub(MARGIN));
        let until = Instant::now() + limit;
        match tokio::time::timeout_at(until.into(), self.ask(task, image, until)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.breaker().failed(Instant::now());
                let reason = format!("the server did not answer within {} ms", limit.as_millis());
                Err(VoteFailure::of(FailureKind::TimedOut, reason))
            }
        }
    }

    /// Asks, and where the server gives no token probabilities asks once more in another way.
    async fn ask(&self, task: &TaskSpec, image: &str, until: Instant) -> Result<ModelOutput, VoteFailure> {
        if self.section.protocol() == Protocol::SystemOne {
            let body = systemone::request(&self.section.model, task, image);
            return self.exchange("/systemone", &body, until, |body| systemone::read(body, task)).await.1;
        }
        let image = format!("data:image/jpeg;base64,{image}");
        if !self.gives_no_probabilities.load(Ordering::Relaxed) {
            let (none, outcome) = self.chat(task, &image, Form::FirstToken, until).await;
            if !none {
                return outcome;
            }
            if !self.gives_no_probabilities.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    model = &*self.name,
                    "the server gives no token probabilities: it is asked for JSON"
                );
            }
        }
        self.chat(task, &image, Form::Json, until).await.1
    }

    async fn chat(
        &self,
        task: &TaskSpec,
        image: &str,
        form: Form,
        until: Instant,
    ) -> (bool, Result<ModelOutput, VoteFailure>) {
        let body = chat::request(&self.section.model, task, image, form);
        self.exchange("/chat/completions", &body, until, |body| chat::read(body, task, form)).await
    }

    /// One question and its answer, paid for; with whether the answer lacked probabilities.
    async fn exchange(
        &self,
        path: &str,
        body: &serde_json::Value,
        until: Instant,
        read: impl Fn(&[u8]) -> Result<RemoteAnswer, Unreadable>,
    ) -> (bool, Result<ModelOutput, VoteFailure>) {
        let body = match self.remote.post(path, Bytes::from(body.to_string()), until).await {
            Ok(body) => body,
            Err(error) => return (false, Err(self.failed(&error))),
        };
        self.breaker().succeeded();
        self.metrics.forwards.with_label_values(&[&*self.name]).inc();
        let answer = read(&body);
        let usage = answer.as_ref().map_or_else(Unreadable::usage, |answer| answer.usage);
        let usd = self.spend.add(usage).await;
        self.metrics.cloud_usd.with_label_values(&[&*self.name]).inc_by(usd);
        match answer {
            Ok(answer) => (false, Ok(answer.logits.into())),
            Err(error) => {
                (matches!(error, Unreadable::NoProbabilities(_)), Err(VoteFailure::new(error.to_string())))
            }
        }
    }

    fn failed(&self, error: &CallError) -> VoteFailure {
        if error.is_servers_fault() {
            self.breaker().failed(Instant::now());
        } else {
            self.breaker().succeeded();
        }
        VoteFailure::new(error.to_string())
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // A breaker is as good after a panic as before it.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
