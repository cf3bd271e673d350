//! The Router actor: a request in, the answer out. The only actor that knows a policy.

mod admission;
mod cascade;
mod error;
mod explain;
mod flight;
mod generate;
mod pictures;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, Message, ResponseFuture};
use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

pub(crate) use self::admission::Admission;
pub use self::error::RouteError;
pub use self::explain::Explanation;
pub(crate) use self::flight::Flights;
pub use self::generate::{Generate, GenerateStream};

use self::admission::while_wanted;
use self::cascade::{Cascade, Computed};
use self::explain::ExplainRequest;
use self::flight::{Boarding, Start};
use crate::Trace;
use crate::cache::{Cache, Get, Lookup, Value};
use crate::digest::Digest;
use crate::metrics::Metrics;
use crate::plan::{Plan, RunningModels, TaskPlan};
use crate::pool::Pool;
use crate::startup::Startup;
use crate::trace::TRACE_TARGET;
use concord_policy::{ModelOutput, Source, Verdict};

/// More than `max_in_flight` may be, so that a full mailbox is never what a request waits for.
const MAILBOX: usize = 65_536;
/// Hashing more than this takes longer than going to another thread does: about 50 µs.
const HASHED_IN_PLACE_BYTES: usize = 128 << 10;

/// An image to be judged.
#[derive(Debug, Message)]
#[rtype(result = "Result<Routed, RouteError>")]
pub struct Classify {
    /// The task's name.
    pub task: String,
    /// The encoded image.
    pub image: Bytes,
    /// When an answer is of no use any more.
    pub deadline: Instant,
    /// Whether to answer without looking into the cache.
    pub fresh: bool,
    /// Whether a model is to say in words why the answer is what it is.
    pub explain: bool,
    /// The request's span.
    pub trace: Trace,
    /// Cancelled when the client has left.
    pub client_left: CancellationToken,
}

/// An answer, and how it came about.
#[derive(Debug, Clone)]
pub struct Routed {
    /// The task as it was when the request came.
    pub task: Arc<TaskPlan>,
    /// The verdict.
    pub verdict: Arc<Verdict>,
    /// What the cache spared.
    pub cache: CacheOutcome,
    /// From encoded bytes to pixels; nothing where that was not needed.
    pub decode: Duration,
    /// From the request's arrival at the router to the answer.
    pub total: Duration,
    /// Why the answer is what it is, where that was asked for.
    pub explanation: Option<Explanation>,
}

/// What the cache spared a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// Everything: the verdict was there.
    Verdict,
    /// Every forward: the votes were there, and were fused again.
    Votes,
    /// Some forwards.
    SomeVotes,
    /// Nothing of its own: it was answered together with an identical request.
    Joined,
    /// Nothing.
    Miss,
}

impl CacheOutcome {
    /// As verdicts and metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Votes => "votes",
            Self::SomeVotes => "some_votes",
            Self::Joined => "joined",
            Self::Miss => "miss",
        }
    }
}

/// What all routers of a process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: ArcSwap<Plan>,
    /// Set once the models are loaded.
    pub(crate) running: OnceLock<RunningModels>,
    pub(crate) is_ready: AtomicBool,
    pub(crate) startup: Startup,
    pub(crate) flights: Flights,
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
    pub(crate) metrics: Metrics,
    pub(crate) max_pixels: u64,
}

impl Shared {
    /// Refuses requests while the models are being loaded or warmed up.
    fn check_ready(&self) -> Result<(), RouteError> {
        if self.is_ready.load(Ordering::Acquire) { Ok(()) } else { Err(RouteError::NotReady) }
    }
}

/// The actor: one on each HTTP worker's thread, with a cache actor beside it.
#[derive(Debug)]
pub struct Router {
    shared: Arc<Shared>,
    cache: Addr<Cache>,
}

impl Router {
    pub(crate) fn new(shared: Arc<Shared>, cache: Addr<Cache>) -> Self {
        Self { shared, cache }
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Classify> for Router {
    type Result = ResponseFuture<Result<Routed, RouteError>>;

    fn handle(&mut self, request: Classify, _: &mut Self::Context) -> Self::Result {
        let route =
            Route { shared: Arc::clone(&self.shared), cache: self.cache.clone(), arrived: Instant::now() };
        Box::pin(route.answer(request))
    }
}

/// One request's way.
struct Route {
    shared: Arc<Shared>,
    cache: Addr<Cache>,
    arrived: Instant,
}

impl Route {
    async fn answer(self, mut request: Classify) -> Result<Routed, RouteError> {
        let _in_flight = self.shared.admission.arrive();
        request.trace = request.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "route", concord.service = "concord-router",
                task = request.task, cache = tracing::field::Empty, stage = tracing::field::Empty,
                outcome = tracing::field::Empty)
        });
        let trace = request.trace.clone();
        let (known_task, result) = match self.task(&request.task) {
            Ok(task) => (Some(Arc::clone(&task)), self.admitted(task, request).await),
            Err(error) => (None, Err(error)),
        };
        self.count(known_task.as_deref(), &result, &trace);
        result
    }

    fn task(&self, name: &str) -> Result<Arc<TaskPlan>, RouteError> {
        self.shared.check_ready()?;
        let plan = self.shared.plan.load();
        plan.task(name).cloned().ok_or_else(|| RouteError::UnknownTask {
            task: name.to_owned(),
            tasks: plan.tasks().map(|task| task.name().to_owned()).collect(),
        })
    }

    /// Answers and, where that is asked for, explains, all within one permit.
    async fn admitted(&self, task: Arc<TaskPlan>, request: Classify) -> Result<Routed, RouteError> {
        let _permit = self.shared.admission.admit()?;
        let explain_request = request.explain.then(|| ExplainRequest::of(&request));
        let mut routed = self.answer_task(task, request).await?;
        if let Some(explain_request) = explain_request {
            routed.explanation = Some(explain::explain(&self.shared, &routed, explain_request).await);
            routed.total = self.arrived.elapsed();
        }
        Ok(routed)
    }

    async fn answer_task(&self, task: Arc<TaskPlan>, request: Classify) -> Result<Routed, RouteError> {
        let image = self.digest(&request.image).await?;
        let verdict_key = task.verdict_key(&image);
        let vote_keys = task.vote_keys(&image);
        let found = if request.fresh {
            Lookup::default()
        } else {
            self.look_up(verdict_key, vote_keys.clone(), &request.trace).await
        };
        if let Some(Value::Verdict(verdict)) = found.verdict {
            return Ok(self.routed(task, verdict, CacheOutcome::Verdict, Duration::ZERO));
        }
        let boarding = if request.fresh {
            Boarding::alone(request.deadline)
        } else {
            self.shared.flights.board(verdict_key, request.deadline)
        };
        let joined = boarding.start.is_none();
        if let Some(start) = boarding.start {
            let cascade = Cascade {
                shared: Arc::clone(&self.shared),
                cache: self.cache.clone(),
                task: Arc::clone(&task),
                keys: (verdict_key, vote_keys),
                bytes: request.image,
                trace: request.trace,
                ticket: Arc::clone(&start.ticket),
            };
            self.start(cascade, start, known(found.votes));
        }
        let arrived = while_wanted(request.deadline, &request.client_left, boarding.arrival).await?;
        let computed =
            arrived.unwrap_or(Err(RouteError::Lost("its computation ended without an outcome")))?;
        drop(boarding.waiter);
        let Computed { verdict, decode } = &*computed;
        let cache = if joined { CacheOutcome::Joined } else { outcome_of(verdict) };
        Ok(self.routed(task, Arc::clone(verdict), cache, *decode))
    }

    async fn digest(&self, image: &Bytes) -> Result<Digest, RouteError> {
        if image.len() <= HASHED_IN_PLACE_BYTES {
            return Ok(Digest::of(image));
        }
        let image = image.clone();
        let digest = self.shared.pool.run(move || Digest::of(&image)).await;
        digest.map_err(|_| RouteError::Lost("its digest could not be computed"))
    }

    async fn look_up(&self, verdict: Digest, votes: Vec<Digest>, trace: &Trace) -> Lookup {
        let get = Get { verdict, votes, trace: trace.clone() };
        // A cache that does not answer is a miss.
        self.cache.send(get).await.unwrap_or_default()
    }

    /// Lets a computation run on this thread, apart from the request that began it.
    fn start(&self, cascade: Cascade, start: Start, known: Vec<Option<ModelOutput>>) {
        let shared = Arc::clone(&self.shared);
        let key = cascade.keys.0;
        actix::spawn(async move {
            let outcome = tokio::select! {
                outcome = cascade.run(known) => outcome,
                _unwanted = start.ticket.until_unwanted() => Err(RouteError::Expired),
            };
            shared.flights.land(&key, &start.ticket);
            // Nobody may be waiting any more.
            let _left = start.outcome.send(outcome);
        });
    }

    fn routed(
        &self,
        task: Arc<TaskPlan>,
        verdict: Arc<Verdict>,
        cache: CacheOutcome,
        decode: Duration,
    ) -> Routed {
        Routed { task, verdict, cache, decode, total: self.arrived.elapsed(), explanation: None }
    }

    fn count(&self, task: Option<&TaskPlan>, result: &Result<Routed, RouteError>, trace: &Trace) {
        // The name of a task that does not exist is anybody's choice, and labels are bounded.
        let name = task.map_or("unknown", TaskPlan::name);
        let (stage, outcome) = match result {
            Ok(routed) => (routed.verdict.stage + 1, routed.verdict.reason.name()),
            Err(error) => (0, error.outcome()),
        };
        let metrics = &self.shared.metrics;
        metrics.requests.with_label_values(&[name, STAGES.get(stage).unwrap_or(&"more"), outcome]).inc();
        trace.record("outcome", outcome);
        trace.record("stage", stage);
        if let Ok(routed) = result {
            trace.record("cache", routed.cache.name());
            let seconds = metrics.request_seconds.with_label_values(&[name, routed.cache.name()]);
            seconds.observe(routed.total.as_secs_f64());
        }
    }
}

/// Stages as labels; ensembles have fewer.
const STAGES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

fn known(values: Vec<Option<Value>>) -> Vec<Option<ModelOutput>> {
    let known = |value| match value {
        Some(Value::Vote(output)) => Some(output),
        _ => None,
    };
    values.into_iter().map(known).collect()
}

fn outcome_of(verdict: &Verdict) -> CacheOutcome {
    let cached = verdict.votes.iter().filter(|fused| fused.vote.source == Source::Cached).count();
    match cached {
        0 => CacheOutcome::Miss,
        all if all == verdict.votes.len() => CacheOutcome::Votes,
        _ => CacheOutcome::SomeVotes,
    }
}
