//! The JSON of a verdict: the only form in which votes and verdicts leave Concord, over HTTP and from the
//! command line.

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

/// The verdict about one image: the fused label, the reason why the cascade stopped, and every vote.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ClassifyResponse {
    /// The identifier of the request in logs and spans: a UUIDv7.
    pub request_id: String,
    /// The identifier of the request's trace, as Jaeger shows it.
    pub trace_id: String,
    /// The name of the task.
    pub task: String,
    /// The most probable label.
    pub label: String,
    /// Its fused probability.
    pub probability: f64,
    /// The largest fused probability, which accept rules are applied to unless they use a correctness
    /// estimator that could be evaluated.
    pub confidence: f64,
    /// The estimated probability that the label is correct, if the stage's rule uses the correctness
    /// estimator and it could be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correctness: Option<f64>,
    /// The fused probability of each label.
    #[schema(value_type = std::collections::BTreeMap<String, f64>)]
    pub probabilities: Probabilities,
    /// The stage at which the cascade stopped, counted from 1.
    pub stage: usize,
    /// The number of stages of the policy.
    pub stages: usize,
    /// The reason why the cascade stopped. `accepted`: the stage's rule was satisfied; `exhausted`: it was
    /// the last stage; `incomplete`: it was the last stage, and an optional model failed, with the failure in
    /// its vote.
    #[schema(value_type = String)]
    pub reason: StopReason,
    /// True if every successful vote has the same most probable label.
    pub agreement: bool,
    /// True if an earlier stage was too busy, so that this one was asked instead.
    pub burst: bool,
    /// True if every model that was asked has voted.
    pub complete: bool,
    /// The stages, counted from 1, that were skipped because the learned weights of their models were too
    /// small.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<usize>,
    /// The learned parts that could not be evaluated, so that the configured values applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<FallbackResponse>,
    /// The cache outcome: `verdict` (the whole verdict was cached), `votes` (all votes were; they were fused
    /// again), `some_votes`, `coalesced` (answered together with an identical request), or `miss`.
    pub cache: &'static str,
    /// Every vote, in the order of the policy.
    pub votes: Vec<VoteResponse>,
    /// The explanation by a model, if one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<ExplanationResponse>,
    /// The time that each step took.
    pub milliseconds: Milliseconds,
}

/// A model's explanation of a verdict, which has no influence on it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ExplanationResponse {
    /// The name of the model in `ensemble.toml`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The explanation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The reason why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A learned part that could not be evaluated.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct FallbackResponse {
    /// The part: `weights` (the configured weights and temperatures applied instead), `correctness` (the
    /// confidence did), or `min_weight` (the configured weights did).
    #[schema(value_type = String)]
    pub part: LearnedPart,
    /// The stage that it would have decided about, counted from 1.
    pub stage: usize,
    /// The reason. `backbone_not_asked`: the model whose feature it needs had not been asked yet;
    /// `backbone_failed`: that model cast no vote; `no_feature`: its vote has no feature; `not_fitted`: the
    /// part was fitted to other models, or to another backbone.
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
    /// The name of the model in `ensemble.toml`.
    pub model: String,
    /// The stage at which it was asked, counted from 1.
    pub stage: usize,
    /// Its most probable label, if it voted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The calibrated probability of that label, with the image's own temperature where that is learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// The calibrated probability of each label.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<std::collections::BTreeMap<String, f64>>)]
    pub probabilities: Option<Probabilities>,
    /// Its share of the verdict; the shares of the successful votes sum to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// The kind of failure: `failed`, `busy`, `expired`, `over_budget`, `circuit_open` or `timed_out`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<&'static str>,
    /// The failure in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The regions that a detecting model found in the image, in pixels: each with a `label` and a `box`
    /// (left, top, right, bottom) or a `quad`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub regions: Vec<RegionResponse>,
    /// The disagreement of its passes with dropout, if there are several: their mutual information in nats, 0
    /// if all agree.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncertainty: Option<f32>,
    /// True if the vote came from the cache, at no cost.
    pub cached: bool,
    /// The time that each step took.
    pub milliseconds: VoteMilliseconds,
}

/// A part of an image, in pixels of the original: x to the right, y down, from the upper left corner.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegionResponse {
    /// The label of the content.
    pub label: String,
    /// The outline: a `box` or a `quad`.
    #[serde(flatten)]
    pub shape: Shape,
}

impl From<&Region> for RegionResponse {
    fn from(Region { label, shape }: &Region) -> Self {
        Self { label: label.clone(), shape: *shape }
    }
}

/// The probability of each label, by its name and in the order of the labels.
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

/// The time that a verdict took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Milliseconds {
    /// The time for decoding the image; 0 if that was not needed.
    pub decode: f64,
    /// The time from the arrival of the encoded bytes at the router to the verdict.
    pub total: f64,
}

/// The time that a vote took, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct VoteMilliseconds {
    /// The time in the model's queue.
    pub queue: f64,
    /// The time for converting pixels to the model's input.
    pub preprocess: f64,
    /// The time in the model, together with the other images of its batch.
    pub model: f64,
}

impl ClassifyResponse {
    /// Renders a verdict: with the names of labels, stages counted from 1, and milliseconds.
    pub fn new(request: &RequestContext, routed: &Routed) -> Self {
        let (policy, verdict) = (routed.task.policy(), &routed.verdict);
        let confidence = verdict.confidence().get();
        Self {
            request_id: request.id.to_string(),
            trace_id: request.trace_id.clone(),
            task: routed.task.name().to_owned(),
            label: policy.label(&verdict.distribution).unwrap_or_default().to_owned(),
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
        Self {
            model: vote.model.to_string(),
            stage: stage + 1,
            label: calibrated.and_then(|distribution| task.policy().label(distribution)).map(str::to_owned),
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

/// Converts to milliseconds, rounded to the microsecond, which is the precision of the clock.
pub(crate) fn in_milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
