//! The Cloud actor, and what a vote by a server takes: a permit, an open breaker, money, and time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, ArbiterHandle, Context, Handler, Message, ResponseFuture};
use concord_models::{RgbImage, TaskSpec};
use concord_policy::{Cost, FailureKind, ModelOutput, VoteFailure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::NoVote;
use super::budget::Budget;
use super::chat::{self, Form};
use super::client::{Call, CallError, Remote};
use super::encode::{self, EncodedImage};
use super::section::{CloudSection, Protocol};
use super::systemone;
use super::usage::Usage;
use crate::breaker::Breaker;
use crate::cache::CacheSection;
use crate::metrics::Metrics;
use crate::vote_reply::VoteReply;
use crate::vote_request::VoteRequest;

/// The failures in a row that open the circuit, and for how long it stays open.
const FAILURES_MAX: u32 = 5;
const PAUSE: Duration = Duration::from_secs(30);
/// The part of a request's time that is kept for the verdict without this vote.
const MARGIN: Duration = Duration::from_millis(20);

/// A running cloud model.
#[derive(Debug, Clone)]
pub(crate) struct CloudHandle {
    name: Arc<str>,
    section: Arc<CloudSection>,
    permits: Arc<Semaphore>,
    address: Addr<Cloud>,
    metrics: Metrics,
}

/// A permit for one request to the server; given back on drop.
#[derive(Debug)]
pub(crate) struct CloudPermit {
    _permit: OwnedSemaphorePermit,
    depth: prometheus::IntGauge,
}

/// A message that asks the server about an image. Dropping it answers the request.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Question {
    task: Arc<TaskSpec>,
    image: EncodedImage,
    permit: CloudPermit,
    request: VoteRequest,
    preprocess: Duration,
}

/// The actor of a cloud model.
#[derive(Debug)]
struct Cloud(Arc<Server>);

/// The state that the requests to one server share.
#[derive(Debug)]
struct Server {
    name: Arc<str>,
    section: Arc<CloudSection>,
    remote: Remote,
    budget: Budget,
    breaker: Mutex<Breaker>,
    /// True once the server has replied in text and without token probabilities: it is asked for JSON from
    /// then on.
    gives_no_probabilities: AtomicBool,
    metrics: Metrics,
}

/// The reason why an exchange gave no vote.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    /// There is no answer.
    #[error(transparent)]
    Call(CallError),
    /// The answer is no vote.
    #[error(transparent)]
    NoVote(NoVote),
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
        // Created on the actor's thread: the connection to Redis belongs to a runtime.
        let address = Cloud::start_in_arbiter(arbiter, move |_| {
            let (name, section, cache, metrics) = parts;
            let spent = metrics.cloud_usd.with_label_values(&[&*name]);
            let budget = Budget::new(&name, &section, &cache, spent);
            let breaker = Mutex::new(Breaker::new(FAILURES_MAX, PAUSE));
            let gives_no_probabilities = AtomicBool::new(false);
            Cloud(Arc::new(Server {
                name,
                section,
                remote,
                budget,
                breaker,
                gives_no_probabilities,
                metrics,
            }))
        });
        let permits = Arc::new(Semaphore::new(section.max_in_flight));
        Ok(Self { name, section, permits, address, metrics: metrics.clone() })
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

    /// Returns how many requests are in flight.
    pub(crate) fn depth(&self) -> usize {
        self.section.max_in_flight - self.permits.available_permits()
    }

    /// Reserves a permit, or fails at once where there is none.
    pub(crate) fn reserve(&self) -> Result<CloudPermit, VoteFailure> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        let permit = permit.map_err(|_| {
            let max = self.section.max_in_flight;
            let reason = format!("too many requests to the server in flight (max_in_flight = {max})");
            VoteFailure::of(FailureKind::Busy, reason)
        })?;
        let depth = self.metrics.queue_depth.with_label_values(&[&*self.name]);
        depth.inc();
        Ok(CloudPermit { _permit: permit, depth })
    }

    /// Encodes the image and sends the question; the caller is a thread of the CPU pool.
    pub(crate) fn submit(
        &self,
        task: &Arc<TaskSpec>,
        image: &RgbImage,
        permit: CloudPermit,
        request: VoteRequest,
    ) {
        let started = Instant::now();
        match encode::jpeg_base64(image, self.section.max_image_side) {
            Ok(image) => {
                let (task, preprocess) = (Arc::clone(task), started.elapsed());
                // The permits bound the mailbox. A question that it does not take answers by its drop.
                self.address.do_send(Question { task, image, permit, request, preprocess });
            }
            Err(error) => request.reply.failed(format!("the image cannot be encoded: {error}")),
        }
    }
}

impl Drop for CloudPermit {
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
        let Question { task, image, permit, request, preprocess } = question;
        let VoteRequest { deadline, trace, reply, .. } = request;
        let started = Instant::now();
        let outcome = tokio::select! {
            outcome = self.vote(&task, &image, deadline.time_left()) => outcome,
            _cancelled = deadline.cancelled() => Err(VoteFailure::expired()),
        };
        let cost = Cost { queue: Duration::ZERO, preprocess, model: started.elapsed() };
        drop(permit);
        reply.send(VoteReply { outcome, cost, batch: 1, trace });
    }

    async fn vote(
        &self,
        task: &TaskSpec,
        image: &EncodedImage,
        left: Duration,
    ) -> Result<ModelOutput, VoteFailure> {
        if !self.breaker().allows(Instant::now()) {
            let reason = "the server failed several times in a row, and is not asked for now (circuit open)";
            return Err(VoteFailure::of(FailureKind::CircuitOpen, reason));
        }
        let left = left.saturating_sub(MARGIN);
        if left.is_zero() {
            // Neither asked nor paid for: that it came late says nothing of the server.
            return Err(VoteFailure::expired());
        }
        let limit = Duration::from_millis(self.section.timeout_ms).min(left);
        let until = Instant::now() + limit;
        match tokio::time::timeout_at(until.into(), self.ask(task, image, until)).await {
            Ok(Ok(logits)) => Ok(logits.into()),
            Ok(Err(error)) => Err(failure_of(&error)),
            Err(_) => {
                self.breaker().failed(Instant::now());
                let reason = format!("the server did not answer within {} ms", limit.as_millis());
                Err(VoteFailure::of(FailureKind::TimedOut, reason))
            }
        }
    }

    /// Asks the server for the probabilities of the first token, and where these say nothing asks once more
    /// for JSON.
    async fn ask(
        &self,
        task: &TaskSpec,
        image: &EncodedImage,
        until: Instant,
    ) -> Result<Vec<f32>, ExchangeError> {
        if self.section.protocol() == Protocol::SystemOne {
            let body = systemone::request(&self.section.model, task, &image.base64);
            let call = Call::new("/systemone", &body, image, systemone::TOKENS_MAX);
            return self.exchange(&call, until, |body| systemone::read(body, task)).await;
        }
        if !self.gives_no_probabilities.load(Ordering::Relaxed) {
            match self.chat(task, image, Form::FirstToken, until).await {
                Err(ExchangeError::NoVote(NoVote::NoProbabilities)) => self.remember_no_probabilities(),
                // It says nothing about other images: the next one is asked for probabilities again.
                Err(ExchangeError::NoVote(NoVote::Undecided)) => {
                    tracing::debug!(model = &*self.name, "no number by tokens: the server is asked for JSON");
                }
                outcome => return outcome,
            }
        }
        self.chat(task, image, Form::Json, until).await
    }

    fn remember_no_probabilities(&self) {
        if !self.gives_no_probabilities.swap(true, Ordering::Relaxed) {
            tracing::info!(
                model = &*self.name,
                "the server gives no token probabilities: it is asked for JSON from now on"
            );
        }
    }

    async fn chat(
        &self,
        task: &TaskSpec,
        image: &EncodedImage,
        form: Form,
        until: Instant,
    ) -> Result<Vec<f32>, ExchangeError> {
        let url = format!("data:image/jpeg;base64,{}", image.base64);
        let body = chat::request(&self.section.model, task, &url, form);
        let call = Call::new("/chat/completions", &body, image, form.tokens_max());
        self.exchange(&call, until, |body| chat::read(body, task, form)).await
    }

    /// Exchanges one question for an answer, books its cost, and records whether it failed. A server whose
    /// model gives an answer works, also when it is none of the allowed ones; one whose answer cannot be read
    /// does not.
    async fn exchange(
        &self,
        call: &Call,
        until: Instant,
        read: impl Fn(&[u8]) -> Result<Vec<f32>, NoVote>,
    ) -> Result<Vec<f32>, ExchangeError> {
        let (body, reservation) = self.remote.post(call, until, &self.budget).await.map_err(|error| {
            self.record(error.is_server_failure());
            ExchangeError::Call(error)
        })?;
        reservation.settle(Usage::read(&body));
        self.metrics.forwards.with_label_values(&[&*self.name]).inc();
        let answer = read(&body);
        self.record(Some(matches!(answer, Err(NoVote::Unreadable(_)))));
        answer.map_err(ExchangeError::NoVote)
    }

    /// Records for the breaker whether the server failed; `None` where it was not asked.
    fn record(&self, failed: Option<bool>) {
        match failed {
            Some(true) => self.breaker().failed(Instant::now()),
            Some(false) => self.breaker().succeeded(),
            None => {}
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // A breaker is as good after a panic as before it.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failure_of(error: &ExchangeError) -> VoteFailure {
    let kind = match error {
        ExchangeError::Call(CallError::OverBudget) => FailureKind::OverBudget,
        ExchangeError::Call(_) | ExchangeError::NoVote(_) => FailureKind::Model,
    };
    VoteFailure::of(kind, error.to_string())
}
