//! The computation of an answer: stage after stage, until the policy has decided.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::oneshot;

use super::Shared;
use super::error::RouteError;
use super::flight::Outcome;
use super::pictures::{Pictures, Submission};
use crate::Trace;
use crate::cache::{Cache, Put, Value};
use crate::digest::Digest;
use crate::model::{Reply, VoteReply};
use crate::plan::{PlannedModel, TaskPlan};
use crate::ticket::Ticket;
use crate::trace::TRACE_TARGET;
use crate::voter::Wanted;
use concord_policy::{
    Context, Decision, Fallback, Member, ModelOutput, Probability, Source, Verdict, Vote, VoteFailure, decide,
};

/// An answer, and what it took before the models.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(super) verdict: Arc<Verdict>,
    pub(super) decode: Duration,
}

/// What a computation works on.
pub(super) struct Cascade {
    pub(super) shared: Arc<Shared>,
    pub(super) cache: Addr<Cache>,
    pub(super) task: Arc<TaskPlan>,
    /// Of the verdict, and of the votes in the order of the policy's members.
    pub(super) keys: (Digest, Vec<Digest>),
    pub(super) bytes: Bytes,
    pub(super) trace: Trace,
    pub(super) ticket: Arc<Ticket>,
}

/// A vote that has been asked for.
struct Asked<'a> {
    member: &'a Member,
    answer: oneshot::Receiver<VoteReply>,
}

impl Cascade {
    /// `known` are the votes of the cache, in the order of the policy's members.
    pub(super) async fn run(&self, mut known: Vec<Option<ModelOutput>>) -> Outcome {
        let policy = self.task.policy();
        known.resize(self.keys.1.len(), None);
        let mut votes: Vec<Vote> = Vec::new();
        let pictures = Arc::<Pictures>::default();
        loop {
            // Each round adds the votes of one stage, so there are no more rounds than stages.
            match decide(policy, &votes, &self.context()) {
                Decision::Ask { stage } => {
                    if let Err(error) = self.ask_stage(stage, &mut known, &mut votes, &pictures).await {
                        self.keep(&votes, None);
                        return Err(error);
                    }
                }
                Decision::Verdict(verdict) => {
                    let verdict = Arc::new(verdict);
                    self.trace_fusion(&verdict);
                    self.count_fallbacks(&verdict);
                    self.keep(&votes, Some(&verdict));
                    let decode = pictures.outcome().unwrap_or_default();
                    return Ok(Arc::new(Computed { verdict, decode }));
                }
                Decision::Failed(failure) => {
                    self.keep(&votes, None);
                    return Err(failure.into());
                }
            }
        }
    }

    /// The queues, where the policy looks at them.
    fn context(&self) -> Context {
        if self.task.policy().stages().iter().all(|stage| stage.burst_queue_depth().is_none()) {
            return Context::default();
        }
        let depth = |seat: &PlannedModel| (Arc::clone(seat.voter.name()), seat.voter.depth());
        Context { queue_depths: self.task.seats().iter().map(depth).collect() }
    }

    /// Adds a vote for each member of the stage: out of the cache, or by its model, all at the same time.
    async fn ask_stage(
        &self,
        stage: usize,
        known: &mut [Option<ModelOutput>],
        votes: &mut Vec<Vote>,
        pictures: &Arc<Pictures>,
    ) -> Result<(), RouteError> {
        let policy = self.task.policy();
        let first: usize = policy.stages()[..stage].iter().map(|stage| stage.members().len()).sum();
        let trace = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "stage", otel.name = format!("stage {}", stage + 1),
                concord.service = "concord-router")
        });
        let (mut asks, mut asked) = (Vec::new(), Vec::new());
        for (index, member) in policy.stages()[stage].members().iter().enumerate() {
            let index = first + index;
            let model = Arc::clone(member.model());
            if let Some(output) = known[index].take() {
                votes.push(Vote::known(model, output));
                continue;
            }
            // Before the image is decoded: a full model must not cost anything.
            let seat = &self.task.seats()[index];
            let (reply, answer) = Reply::new();
            let wanted = Wanted { ticket: Arc::clone(&self.ticket), trace: trace.clone(), reply };
            match seat.voter.ask(wanted) {
                Ok(ask) => {
                    asks.push(ask);
                    asked.push(Asked { member, answer });
                }
                Err(failure) if member.is_required() => {
                    self.count_vote(&model, "busy");
                    return Err(RouteError::Busy(format!("model {model}: {failure}")));
                }
                Err(failure) => {
                    self.count_vote(&model, "busy");
                    votes.push(Vote::failed(model, failure));
                }
            }
        }
        if asks.is_empty() {
            return Ok(());
        }
        self.submission(pictures).start(asks);
        let replies = join_all(asked.iter_mut().map(|asked| &mut asked.answer)).await;
        pictures.outcome()?;
        for (asked, reply) in asked.iter().zip(replies) {
            votes.push(match reply {
                Ok(reply) => self.vote(asked.member, reply),
                // `Reply` answers when it is dropped, so this does not happen.
                Err(_) => return Err(RouteError::Lost("a model did not answer")),
            });
        }
        Ok(())
    }

    fn submission(&self, pictures: &Arc<Pictures>) -> Submission {
        Submission {
            pictures: Arc::clone(pictures),
            bytes: self.bytes.clone(),
            ticket: Arc::clone(&self.ticket),
            shared: Arc::clone(&self.shared),
            trace: self.trace.clone(),
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
                    trace.record("label", labels[distribution.argmax()].as_str());
                    trace.record("p", distribution.confidence().get());
                }
                self.count_vote(name, "ok");
            }
            Err(failure) => {
                trace.record("error", failure.to_string());
                self.count_vote(name, failure.kind().name());
                tracing::warn!(parent: self.trace.span(), model = &**name, %failure, "no vote");
            }
        }
        Vote { model: Arc::clone(name), output, cost, source: Source::Fresh }
    }

    /// A span without a length: deciding takes microseconds.
    fn trace_fusion(&self, verdict: &Verdict) {
        let label = &self.task.policy().labels()[verdict.label()];
        let _span = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "fuse", concord.service = "concord-router",
                label = label.as_str(), confidence = verdict.confidence().get(), agreement = verdict.agreement,
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

    /// Has the cache keep what is new: votes that were given, and the answer where it is complete.
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
            // Nobody waits for it, and its mailbox holds more than there are requests.
            if let Err(error) = self.cache.try_send(Put { values, trace: self.trace.clone() }) {
                tracing::debug!(%error, "the cache's actor took no message");
            }
        }
    }

    fn count_vote(&self, model: &str, outcome: &str) {
        self.shared.metrics.votes.with_label_values(&[model, outcome]).inc();
    }
}
