//! The Router actor, and the way of a classify request: admission, cache, single flight, cascade.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, ResponseFuture};
use bytes::Bytes;
use concord_policy::{ModelOutput, Source, Verdict};

use super::admission::while_wanted;
use super::cascade::Cascade;
use super::error::RouteError;
use super::explain::{self, ExplainRequest};
use super::known::Known;
use super::messages::{CacheOutcome, Classify, Routed};
use super::shared::Shared;
use super::single_flight::{Computation, Computed, Join, Role};
use crate::Trace;
use crate::cache::{Cache, Get};
use crate::digest::Digest;
use crate::plan::TaskPlan;
use crate::pool::Lane;
use crate::trace::TRACE_TARGET;

/// Larger than `max_in_flight` may be, so that no request ever waits for a full mailbox.
const MAILBOX: usize = 65_536;
/// Hashing more than this takes longer than going to another thread does: about 50 µs.
const HASHED_IN_PLACE_BYTES: usize = 128 << 10;

/// The actor, one on each HTTP worker's thread, with a cache actor beside it.
#[derive(Debug)]
pub struct Router {
    pub(super) shared: Arc<Shared>,
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

/// A classify request on its way.
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

    /// Answers the request and, where that is asked for, explains the answer, all within one permit.
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
        let digest = self.digest(&request.image);
        let image = while_wanted(request.deadline, &request.client_left, digest).await??;
        let verdict_key = task.verdict_key(&image);
        let vote_keys = task.vote_keys(&image);
        let known = if request.fresh {
            Known::default()
        } else {
            self.look_up(&task, verdict_key, vote_keys.clone(), &request.trace).await
        };
        if let Some(verdict) = known.verdict {
            return Ok(self.routed(task, verdict, CacheOutcome::Verdict, Duration::ZERO));
        }
        let join = if request.fresh {
            Join::alone(request.deadline)
        } else {
            self.shared.single_flight.join(verdict_key, request.deadline)
        };
        let is_follower = matches!(join.role, Role::Follower);
        if let Role::Leader(computation) = join.role {
            let cascade = Cascade {
                shared: Arc::clone(&self.shared),
                cache: self.cache.clone(),
                task: Arc::clone(&task),
                keys: (verdict_key, vote_keys),
                bytes: request.image,
                trace: request.trace,
                deadline: Arc::clone(&computation.deadline),
            };
            self.start(cascade, computation, known.votes);
        }
        let outcome = while_wanted(request.deadline, &request.client_left, join.result).await?;
        let computed =
            outcome.unwrap_or(Err(RouteError::Lost("its computation ended without an outcome")))?;
        drop(join.interest);
        let Computed { verdict, decode } = &*computed;
        let cache = if is_follower { CacheOutcome::Coalesced } else { outcome_of(verdict) };
        Ok(self.routed(task, Arc::clone(verdict), cache, *decode))
    }

    async fn digest(&self, image: &Bytes) -> Result<Digest, RouteError> {
        if image.len() <= HASHED_IN_PLACE_BYTES {
            return Ok(Digest::of(image));
        }
        let image = image.clone();
        let digest = self.shared.pool.run(Lane::Small, move || Digest::of(&image)).await;
        digest.map_err(|_| RouteError::Lost("its digest could not be computed"))
    }

    async fn look_up(&self, task: &TaskPlan, verdict: Digest, votes: Vec<Digest>, trace: &Trace) -> Known {
        let asked = votes.len();
        let get = Get { verdict, votes, trace: trace.clone() };
        // A cache that does not answer is a miss.
        let found = self.cache.send(get).await.unwrap_or_default();
        let feature_lengths = task.members().iter().map(|member| member.client.feature_length());
        let known = Known::fitting(found, task.policy(), feature_lengths);
        known.count(asked, &self.shared.metrics);
        known
    }

    /// Runs a computation on this thread, apart from the request that leads it.
    fn start(&self, cascade: Cascade, computation: Computation, known: Vec<Option<ModelOutput>>) {
        let shared = Arc::clone(&self.shared);
        let key = cascade.keys.0;
        actix::spawn(async move {
            let outcome = tokio::select! {
                outcome = cascade.run(known) => outcome,
                _reason = computation.deadline.cancelled() => Err(RouteError::Expired),
            };
            shared.single_flight.finish(&key, &computation.deadline);
            // Nobody may be waiting any more.
            let _left = computation.outcome.send(outcome);
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
        // The name of a task that does not exist is anybody's choice, but labels must be bounded.
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

/// The stages as labels; ensembles have fewer.
const STAGES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

fn outcome_of(verdict: &Verdict) -> CacheOutcome {
    let cached = verdict.votes.iter().filter(|fused| fused.vote.source == Source::Cached).count();
    match cached {
        0 => CacheOutcome::Miss,
        all if all == verdict.votes.len() => CacheOutcome::Votes,
        _ => CacheOutcome::SomeVotes,
    }
}
