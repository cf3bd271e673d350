//! The response to a request for a verdict: the only form in which votes and verdicts leave Concord, over
//! HTTP and from the command line.

use std::sync::Arc;
use std::time::Duration;

use concord_actors::{Routed, TaskPlan};
use concord_policy::{
    Distribution, Fallback, FallbackReason, FusedVote, LearnedPart, Probability, Region, Shape, Source,
    StopReason,
};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::telemetry::RequestContext;

/// The fused answer to a task, why the cascade stopped where it did, and every vote.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClassifyResponse {
    /// The request, as logs and spans call it: a UUIDv7.
    pub request_id: String,
    /// The request's trace, as Jaeger calls it.
    pub trace_id: String,
    /// The task's name.
    pub task: String,
    /// The most probable label.
    pub label: String,
    /// Its fused probability.
    pub probability: f64,
    /// What the accept rules were applied to, but those with a correctness estimator that could be read: the
    /// largest fused probability.
    pub confidence: f64,
    /// How likely the answer is right, by the learned correctness estimator, where the stage's rule asks it
    /// and it could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correctness: Option<f64>,
    /// The fused probability of each label.
    #[schema(value_type = std::collections::BTreeMap<String, f64>)]
    pub probabilities: Probabilities,
    /// The stage at which the cascade stopped, from 1.
    pub stage: usize,
    /// How many stages the policy has.
    pub stages: usize,
    /// `accepted`: that stage's rule was satisfied; `exhausted`: it was the last; `incomplete`: it was the
    /// last, and an optional model gave no vote, for the reason that stands beside it.
    #[schema(value_type = String)]
    pub reason: StopReason,
    /// Whether every successful vote has the same most probable label.
    pub agreement: bool,
    /// Whether a stage before was too busy, so that this one was asked instead.
    pub burst: bool,
    /// Whether every model that was asked has voted.
    pub complete: bool,
    /// The stages, from 1, that were left out because the learned weights of their models were too small.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<usize>,
    /// Learned parts that could not be used, so that what is configured counted in their place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<FallbackResponse>,
    /// What the cache spared: `verdict` (everything), `votes` (every model; they were fused again),
    /// `some_votes`, `joined` (answered together with an identical request), or `miss`.
    pub cache: &'static str,
    /// Every vote, in the order of the policy.
    pub votes: Vec<VoteResponse>,
    /// Why, in the words of a model, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<ExplanationResponse>,
    /// Where the time went.
    pub milliseconds: Milliseconds,
}

/// What a model says about a verdict; it had no part in it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExplanationResponse {
    /// The model's name in `ensemble.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Why it wrote nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A learned part that could not be used.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FallbackResponse {
    /// `weights` (the configured ones counted, and no temperatures of the image), `correctness` (the
    /// confidence did), or `min_weight` (the configured weights did).
    #[schema(value_type = String)]
    pub part: LearnedPart,
    /// The stage that it would have decided about, from 1.
    pub stage: usize,
    /// `backbone_not_asked`: the model whose feature it reads had not been asked yet; `backbone_failed`: it
    /// gave no vote; `no_feature`: it gave no feature with it; `not_fitted`: it was fitted to other models,
    /// or to another backbone.
    #[schema(value_type = String)]
    pub reason: FallbackReason,
}

impl FallbackResponse {
    fn new(&Fallback { part, stage, reason }: &Fallback) -> Self {
        Self { part, stage: stage + 1, reason }
    }
}

/// One vote of a verdict.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct VoteResponse {
    /// The model's name in `ensemble.toml`.
    pub model: String,
    /// The stage at which it was asked, from 1.
    pub stage: usize,
    /// What it said, where it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The probability of that label as it counts: calibrated, and by the image's own temperature where that
    /// is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// The same of each label.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, f64>>)]
    pub probabilities: Option<Probabilities>,
    /// Its share of the answer; the shares of the votes that exist sum to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// What kind of failure it is: `failed`, `busy`, `expired`, `over_budget`, `circuit_open` or `timed_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<&'static str>,
    /// Why it gave no vote, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it found in the image, in pixels, where the model looks for things: each with a `label` and a
    /// `box` (left, top, right, bottom) or a `quad`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub regions: Vec<RegionResponse>,
    /// How much its passes with dropout differ, where there are several: their mutual information in nats, 0
    /// where all say the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<f32>,
    /// Whether it came out of the cache, and cost nothing.
    pub cached: bool,
    /// What it cost.
    pub milliseconds: VoteMilliseconds,
}

/// Part of an image, in pixels of the original: x to the right, y down, from the upper left corner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegionResponse {
    /// What is there.
    pub label: String,
    /// Where it is: a `box` or a `quad`.
    #[serde(flatten)]
    pub shape: Shape,
}

impl From<&Region> for RegionResponse {
    fn from(Region { label, shape }: &Region) -> Self {
        Self { label: label.clone(), shape: *shape }
    }
}

/// A probability for each label, by the label's name and in the order of the labels.
#[derive(Debug, Clone)]
pub struct Probabilities {
    task: Arc<TaskPlan>,
    distribution: Distribution,
}

impl Serialize for Probabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.task.policy().labels().iter().zip(self.distribution.probabilities()))
    }
}

/// What a verdict cost, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Milliseconds {
    /// From encoded bytes to pixels; 0 where that was not needed.
    pub decode: f64,
    /// From the arrival of the encoded bytes at the router to the verdict.
    pub total: f64,
}

/// What a vote cost, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct VoteMilliseconds {
    /// Ready, and waiting for the model.
    pub queue: f64,
    /// From pixels to the model's input.
    pub preprocess: f64,
    /// In the model, with the other images of its batch.
    pub model: f64,
}

impl ClassifyResponse {
    /// Puts an answer into words: the labels' names, stages from 1, milliseconds.
    pub fn new(request: &RequestContext, routed: &Routed) -> Self {
        let (policy, verdict) = (routed.task.policy(), &routed.verdict);
        let confidence = verdict.confidence().get();
        Self {
            request_id: request.id.to_string(),
            trace_id: request.trace_id.clone(),
            task: routed.task.name().to_owned(),
            label: policy.labels()[verdict.label()].clone(),
            probability: confidence,
            confidence,
            correctness: verdict.correctness.map(Probability::get),
            probabilities: by_label(&routed.task, &verdict.distribution),
            stage: verdict.stage + 1,
            stages: policy.stages().len(),
            reason: verdict.reason,
            agreement: verdict.agreement,
            burst: verdict.burst,
            complete: verdict.is_complete(),
            skipped: verdict.skipped.iter().map(|stage| stage + 1).collect(),
            fallbacks: verdict.fallbacks.iter().map(FallbackResponse::new).collect(),
            cache: routed.cache.name(),
            votes: verdict.votes.iter().map(|vote| VoteResponse::new(&routed.task, vote)).collect(),
            explanation: routed.explanation.clone().map(|explanation| ExplanationResponse {
                model: explanation.model,
                error: explanation.text.as_ref().err().cloned(),
                text: explanation.text.ok(),
            }),
            milliseconds: Milliseconds {
                decode: in_milliseconds(routed.decode),
                total: in_milliseconds(routed.total),
            },
        }
    }
}

impl VoteResponse {
    fn new(task: &Arc<TaskPlan>, FusedVote { vote, stage, calibrated, weight }: &FusedVote) -> Self {
        let (output, failure) = (vote.output.as_ref().ok(), vote.output.as_ref().err());
        let calibrated = calibrated.as_ref();
        let name_of = |distribution: &Distribution| task.policy().labels()[distribution.argmax()].clone();
        Self {
            model: vote.model.to_string(),
            stage: stage + 1,
            label: calibrated.map(name_of),
            probability: calibrated.map(|distribution| distribution.confidence().get()),
            probabilities: calibrated.map(|distribution| by_label(task, distribution)),
            weight: calibrated.map(|_| *weight),
            failure: failure.map(|failure| failure.kind().name()),
            error: failure.map(ToString::to_string),
            regions: output.map_or_else(Vec::new, |output| {
                output.evidence.regions.iter().map(RegionResponse::from).collect()
            }),
            uncertainty: output.and_then(|output| output.evidence.uncertainty),
            cached: vote.source == Source::Cached,
            milliseconds: VoteMilliseconds {
                queue: in_milliseconds(vote.cost.queue),
                preprocess: in_milliseconds(vote.cost.preprocess),
                model: in_milliseconds(vote.cost.model),
            },
        }
    }
}

fn by_label(task: &Arc<TaskPlan>, distribution: &Distribution) -> Probabilities {
    Probabilities { task: Arc::clone(task), distribution: distribution.clone() }
}

/// To the microsecond, which is what the clock is good for.
pub(crate) fn in_milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
