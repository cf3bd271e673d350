//! The computation of an answer: stage after stage, until the policy has decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;
use concord_models::{RgbImage, decode};
use futures::future::join_all;
use tracing::field::Empty;

use super::Shared;
use super::error::RouteError;
use super::flight::Outcome;
use crate::Trace;
use crate::cache::{Cache, Put, Value};
use crate::digest::Digest;
use crate::model::{Ask, Place, Reply};
use crate::plan::TaskPlan;
use crate::policy::{Answer, Cost, Decision, Logits, Member, Vote, VoteFailure, decide};
use crate::ticket::Ticket;
use crate::trace::TRACE_TARGET;

/// An answer, and what it took before the models.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(super) answer: Arc<Answer>,
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

/// The image, once it has been decoded.
#[derive(Default)]
struct Decoded {
    image: Option<Arc<RgbImage>>,
    elapsed: Duration,
}

/// A member of a stage, with a place in its model's queue.
type Asked<'a> = (usize, &'a Member, Place);

impl Cascade {
    /// `known` are the votes of the cache, in the order of the policy's members.
    pub(super) async fn run(&self, mut known: Vec<Option<Logits>>) -> Outcome {
        let policy = self.task.policy();
        known.resize(self.keys.1.len(), None);
        let mut votes: Vec<Vote> = Vec::new();
        let mut decoded = Decoded::default();
        loop {
            // Each round adds the votes of one stage, so there are no more rounds than stages.
            match decide(policy, &votes) {
                Decision::Ask { stage } => {
                    if let Err(error) = self.ask_stage(stage, &mut known, &mut votes, &mut decoded).await {
                        self.keep(&votes, None);
                        return Err(error);
                    }
                }
                Decision::Answer(answer) => {
                    let answer = Arc::new(answer);
                    self.trace_fusion(&answer);
                    self.keep(&votes, Some(&answer));
                    return Ok(Arc::new(Computed { answer, decode: decoded.elapsed }));
                }
                Decision::Failed(failure) => {
                    self.keep(&votes, None);
                    return Err(failure.into());
                }
            }
        }
    }

    /// Adds a vote for each member of the stage: out of the cache, or by its model, all at the same time.
    async fn ask_stage(
        &self,
        stage: usize,
        known: &mut [Option<Logits>],
        votes: &mut Vec<Vote>,
        decoded: &mut Decoded,
    ) -> Result<(), RouteError> {
        let policy = self.task.policy();
        let first: usize = policy.stages()[..stage].iter().map(|stage| stage.members().len()).sum();
        let trace = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "stage", otel.name = format!("stage {}", stage + 1),
                concord.service = "concord-router")
        });
        let mut asked: Vec<Asked<'_>> = Vec::new();
        for (index, member) in policy.stages()[stage].members().iter().enumerate() {
            let index = first + index;
            let model = Arc::clone(member.model());
            if let Some(logits) = known[index].take() {
                votes.push(Vote { model, outcome: Ok(logits), cost: Cost::CACHED });
                continue;
            }
            // Before the image is decoded: a full model must not cost anything.
            match self.task.seats()[index].model.reserve() {
                Ok(place) => asked.push((index, member, place)),
                Err(failure) if member.is_required() => {
                    self.count_vote(&model, "busy");
                    return Err(RouteError::Busy(format!("model {model}: {failure}")));
                }
                Err(failure) => {
                    self.count_vote(&model, "busy");
                    votes.push(Vote { model, outcome: Err(failure), cost: Cost::default() });
                }
            }
        }
        if !asked.is_empty() {
            let image = self.decode(decoded).await?;
            votes.extend(join_all(asked.into_iter().map(|asked| self.vote(asked, &image, &trace))).await);
        }
        Ok(())
    }

    /// At the first stage that needs it.
    async fn decode(&self, decoded: &mut Decoded) -> Result<Arc<RgbImage>, RouteError> {
        if let Some(image) = &decoded.image {
            return Ok(Arc::clone(image));
        }
        let trace = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "decode", concord.service = "concord-router",
                bytes = self.bytes.len(), width = Empty, height = Empty)
        });
        let (bytes, max_pixels, ticket) =
            (self.bytes.clone(), self.shared.max_pixels, Arc::clone(&self.ticket));
        let work = move || {
            if ticket.unwanted().is_some() {
                return (Err(RouteError::Expired), Duration::ZERO);
            }
            let started = Instant::now();
            let image = decode(&bytes, max_pixels).map_err(RouteError::from);
            (image, started.elapsed())
        };
        let done = self.shared.pool.run(work).await;
        let (image, elapsed) = done.map_err(|_| RouteError::Lost("the image decoder panicked"))?;
        self.shared.metrics.phase_seconds.with_label_values(&["decode"]).observe(elapsed.as_secs_f64());
        let image = Arc::new(image?);
        trace.record("width", image.width());
        trace.record("height", image.height());
        *decoded = Decoded { image: Some(Arc::clone(&image)), elapsed };
        Ok(image)
    }

    async fn vote(&self, (index, member, place): Asked<'_>, image: &Arc<RgbImage>, stage: &Trace) -> Vote {
        let name = member.model();
        let trace = stage.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "vote",
                concord.service = format_args!("concord-model-{name}"), model = &**name, batch_size = Empty,
                queue_ms = Empty, preprocess_ms = Empty, gpu_ms = Empty, label = Empty, p = Empty,
                weight = member.weight().get(), error = Empty)
        });
        let seat = &self.task.seats()[index];
        let (reply, answer) = Reply::new();
        seat.model.ask(Ask {
            task: seat.prepared.id,
            image: Arc::clone(image),
            ticket: Arc::clone(&self.ticket),
            trace: trace.clone(),
            place,
            reply,
        });
        let labels = self.task.policy().labels();
        let (outcome, cost) = match answer.await {
            Ok(reply) => {
                trace.record("batch_size", reply.batch);
                let logits = |logits| {
                    Logits::new(logits, labels.len()).map_err(|error| VoteFailure::new(error.to_string()))
                };
                (reply.outcome.and_then(logits), reply.cost)
            }
            Err(_) => (Err(VoteFailure::new("the model did not answer")), Cost::default()),
        };
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        trace.record("queue_ms", ms(cost.queue));
        trace.record("preprocess_ms", ms(cost.preprocess));
        trace.record("gpu_ms", ms(cost.model));
        match &outcome {
            Ok(logits) => {
                let distribution = logits.calibrated(member.temperature());
                trace.record("label", labels[distribution.argmax()].as_str());
                trace.record("p", distribution.confidence().get());
                self.count_vote(name, "given");
            }
            Err(failure) => {
                trace.record("error", failure.to_string());
                self.count_vote(name, "failed");
                tracing::warn!(parent: trace.span(), model = &**name, %failure, "no vote");
            }
        }
        Vote { model: Arc::clone(name), outcome, cost }
    }

    /// A span without a length: deciding takes microseconds.
    fn trace_fusion(&self, answer: &Answer) {
        let label = &self.task.policy().labels()[answer.label()];
        let _span = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "fuse", concord.service = "concord-router",
                label = label.as_str(), confidence = answer.confidence().get(), agreement = answer.agreement,
                stage = answer.stage + 1, reason = answer.reason.name())
        });
    }

    /// Has the cache keep what is new: votes that were given, and the answer where it is complete.
    fn keep(&self, votes: &[Vote], answer: Option<&Arc<Answer>>) {
        let (verdict_key, vote_keys) = &self.keys;
        let mut values = Vec::new();
        for (member, key) in self.task.policy().members().zip(vote_keys) {
            let vote = votes.iter().find(|vote| vote.model == *member.model() && !vote.cost.cached);
            if let Some(Ok(logits)) = vote.map(|vote| &vote.outcome) {
                values.push((*key, Value::Vote(logits.clone())));
            }
        }
        if let Some(answer) = answer.filter(|answer| answer.is_complete()) {
            values.push((*verdict_key, Value::Verdict(Arc::new(answer.as_cached()))));
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
