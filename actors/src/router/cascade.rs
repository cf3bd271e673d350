//! The cascade: asks stage after stage, until the policy has decided.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use concord_policy::{
    Context, Decision, Fallback, Member, ModelOutput, Probability, Source, Verdict, Vote, VoteFailure, decide,
};
use futures::future::join_all;
use tokio::sync::oneshot;

use super::error::RouteError;
use super::images::Submission;
use super::shared::Shared;
use super::single_flight::{Computed, Outcome};
use super::work::Work;
use crate::Trace;
use crate::cache::{Cache, Put, Value};
use crate::deadline::SharedDeadline;
use crate::digest::Digest;
use crate::log_limit::LogLimit;
use crate::plan::{PlannedModel, TaskPlan};
use crate::pool::Order;
use crate::trace::TRACE_TARGET;
use crate::vote_reply::{Reply, VoteReply};
use crate::vote_request::VoteRequest;

/// By the names of models: each request can cause such a line.
static NO_VOTE: LogLimit = LogLimit::new();

/// The state of one computation.
pub(super) struct Cascade {
    pub(super) shared: Arc<Shared>,
    pub(super) cache: Addr<Cache>,
    pub(super) task: Arc<TaskPlan>,
    /// The keys of the verdict, and of the votes in the order of the policy's members.
    pub(super) keys: (Digest, Vec<Digest>),
    pub(super) bytes: Bytes,
    pub(super) trace: Trace,
    pub(super) deadline: Arc<SharedDeadline>,
}

/// A vote that has been requested.
struct PendingVote<'a> {
    member: &'a Member,
    reply: oneshot::Receiver<VoteReply>,
}

impl Cascade {
    /// Computes the answer. `known` are the cached votes, in the order of the policy's members.
    pub(super) async fn run(&self, mut known: Vec<Option<ModelOutput>>) -> Outcome {
        let policy = self.task.policy();
        known.resize(self.keys.1.len(), None);
        let mut votes: Vec<Vote> = Vec::new();
        let mut work = Work::default();
        loop {
            // Each round adds the votes of one stage, so there are no more rounds than stages.
            match decide(policy, &votes, &self.context()) {
                Decision::Ask { stage } => {
                    if let Err(error) = self.ask_stage(stage, &mut known, &mut votes, &mut work).await {
                        self.keep(&votes, None);
                        return Err(error);
                    }
                }
                Decision::Verdict(verdict) => {
                    let verdict = Arc::new(verdict);
                    self.trace_fusion(&verdict);
                    self.count_fallbacks(&verdict);
                    self.keep(&votes, Some(&verdict));
                    let decode = work.images.outcome().unwrap_or_default();
                    work.complete();
                    return Ok(Arc::new(Computed { verdict, decode }));
                }
                Decision::Failed(failure) => {
                    self.keep(&votes, None);
                    return Err(failure.into());
                }
            }
        }
    }

    /// Returns the depths of the queues, where the policy looks at them.
    fn context(&self) -> Context {
        if self.task.policy().stages().iter().all(|stage| stage.burst_queue_depth().is_none()) {
            return Context::default();
        }
        let depth = |member: &PlannedModel| (Arc::clone(member.client.name()), member.client.depth());
        Context { queue_depths: self.task.members().iter().map(depth).collect() }
    }

    /// Adds a vote for each member of the stage: from the cache, or by its model, all at the same time.
    async fn ask_stage(
        &self,
        stage: usize,
        known: &mut [Option<ModelOutput>],
        votes: &mut Vec<Vote>,
        work: &mut Work,
    ) -> Result<(), RouteError> {
        let policy = self.task.policy();
        let first: usize = policy.stages()[..stage].iter().map(|stage| stage.members().len()).sum();
        let trace = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "stage", otel.name = format!("stage {}", stage + 1),
                concord.service = "concord-router")
        });
        let members = policy.stages()[stage].members();
        let is_missing = |index: usize| known[first + index].is_none();
        if !work.has_begun() && (0..members.len()).any(is_missing) {
            // Before anything is spent on it.
            for (index, member) in members.iter().enumerate().filter(|(index, _)| is_missing(*index)) {
                let client = &self.task.members()[first + index].client;
                if member.is_required() && client.is_full() {
                    return Err(self.busy(member.model(), &VoteFailure::busy()));
                }
            }
            work.begin(self).await?;
        }
        let (mut reserved, mut pending) = (Vec::new(), Vec::new());
        for (index, member) in members.iter().enumerate() {
            let index = first + index;
            let model = Arc::clone(member.model());
            if let Some(output) = known[index].take() {
                votes.push(Vote::known(model, output));
                continue;
            }
            let client = &self.task.members()[index].client;
            let (reply, receiver) = Reply::new();
            let (deadline, trace) = (Arc::clone(&self.deadline), trace.clone());
            let request = VoteRequest { deadline, stage: work.asked_stages, trace, reply };
            match client.reserve(request) {
                Ok(vote) => {
                    reserved.push(vote);
                    pending.push(PendingVote { member, reply: receiver });
                }
                Err(failure) if member.is_required() => return Err(self.busy(&model, &failure)),
                Err(failure) => {
                    self.count_vote(&model, "busy");
                    votes.push(Vote::failed(model, failure));
                }
            }
        }
        if reserved.is_empty() {
            return Ok(());
        }
        let order = if work.asked_stages == 0 { Order::New } else { Order::Continued };
        work.asked_stages += 1;
        self.submission(work).start(order, reserved);
        let replies = join_all(pending.iter_mut().map(|vote| &mut vote.reply)).await;
        work.images.outcome()?;
        for (pending, reply) in pending.iter().zip(replies) {
            votes.push(match reply {
                Ok(reply) => self.vote(pending.member, reply),
                // `Reply` answers when it is dropped, so this does not happen.
                Err(_) => return Err(RouteError::Lost("a model did not answer")),
            });
        }
        Ok(())
    }

    /// Counts a vote that a full model did not give, and returns the request's error.
    fn busy(&self, model: &str, failure: &VoteFailure) -> RouteError {
        self.count_vote(model, "busy");
        RouteError::busy(format!("model {model}: {failure}"))
    }

    fn submission(&self, work: &Work) -> Submission {
        Submission {
            images: Arc::clone(&work.images),
            bytes: self.bytes.clone(),
            deadline: Arc::clone(&self.deadline),
            shared: Arc::clone(&self.shared),
            trace: self.trace.clone(),
            lane: work.lane,
        }
    }

    fn vote(&self, member: &Member, VoteReply { outcome, cost, batch, trace }: VoteReply) -> Vote {
        let name = member.model();
        let labels = self.task.policy().labels();
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        trace.record("batch_size", batch);
        trace.record("queue_ms", ms(cost.queue));
        trace.record("preprocess_ms", ms(cost.preprocess));
        trace.record("gpu_ms", ms(cost.model));
        trace.record("weight", member.weight().get());
        let output = outcome.and_then(|output| match output.logits(labels.len()) {
            Ok(_) => Ok(output),
            Err(error) => Err(VoteFailure::new(error.to_string())),
        });
        match &output {
            Ok(output) => {
                if let Some(logits) = output.logits(labels.len()).ok().filter(|_| trace.is_sampled()) {
                    let distribution = logits.calibrated(member.calibration());
                    trace.record("label", self.task.policy().label(&distribution));
                    trace.record("p", distribution.confidence().get());
                }
                self.count_vote(name, "ok");
            }
            Err(failure) => {
                trace.record("error", failure.to_string());
                self.count_vote(name, failure.kind().name());
                NO_VOTE.log(name, || {
                    tracing::warn!(parent: self.trace.span(), model = &**name, %failure, "no vote");
                });
            }
        }
        Vote { model: Arc::clone(name), output, cost, source: Source::Fresh }
    }

    /// Records the fusion as a span without a length: deciding takes microseconds.
    fn trace_fusion(&self, verdict: &Verdict) {
        let label = self.task.policy().label(&verdict.distribution);
        let _span = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "fuse", concord.service = "concord-router",
                label, confidence = verdict.confidence().get(), agreement = verdict.agreement,
                stage = verdict.stage + 1, reason = verdict.reason.name(), correctness = verdict.correctness.map(Probability::get),
                fallbacks = verdict.fallbacks.len())
        });
    }

    fn count_fallbacks(&self, verdict: &Verdict) {
        for Fallback { part, reason, .. } in &verdict.fallbacks {
            let labels = [self.task.name(), part.name(), reason.name()];
            self.shared.metrics.learned_fallbacks.with_label_values(&labels).inc();
        }
    }

    /// Caches what is new: the votes of models that have just run, and the verdict where it is complete.
    fn keep(&self, votes: &[Vote], verdict: Option<&Arc<Verdict>>) {
        let (verdict_key, vote_keys) = &self.keys;
        let mut values = Vec::new();
        for (member, key) in self.task.policy().members().zip(vote_keys) {
            let is_new = |vote: &&Vote| vote.model == *member.model() && vote.source == Source::Fresh;
            if let Some(Ok(output)) = votes.iter().find(is_new).map(|vote| &vote.output) {
                values.push((*key, Value::Vote(output.clone())));
            }
        }
        if let Some(verdict) = verdict.filter(|verdict| verdict.is_lasting()) {
            values.push((*verdict_key, Value::Verdict(Arc::new(verdict.as_cached()))));
        }
        if !values.is_empty() {
            // Nobody waits for it, and the mailbox holds more messages than there are requests.
            if let Err(error) = self.cache.try_send(Put { values, trace: self.trace.clone() }) {
                tracing::debug!(%error, "the cache's actor took no message: the values are not kept");
            }
        }
    }

    fn count_vote(&self, model: &str, outcome: &str) {
        self.shared.metrics.votes.with_label_values(&[model, outcome]).inc();
    }
}
