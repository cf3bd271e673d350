//! Defines `[tasks.NAME]` as it is written in `ensemble.toml`, before anything but its types is checked.
//!
//! Every field has a default, so that one that is missing or has the wrong type does not hide the errors in
//! the others; [`Policy::from_section`](crate::Policy::from_section) reports the fields that are required.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `[tasks.NAME]`: a question with labels, and the cascade of models that answers it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TaskSection {
    /// The question about an image, in words.
    pub question: String,
    /// The possible answers, at least two. Their order is the order of a head's outputs.
    pub labels: Vec<String>,
    /// The method and the weights by which votes are fused.
    pub fusion: FusionSection,
    /// The file of the networks that `concord fit` has learned for this task, relative to the folder of
    /// `ensemble.toml`: weights and temperatures for each image, and correctness estimators.
    pub learned: Option<String>,
    /// The temperature of each model, by which its logits are divided. 1.0 where absent.
    pub calibration: BTreeMap<String, f64>,
    /// The factor and the summand for each label's log-probability, in place of a temperature.
    pub scaling: BTreeMap<String, ScalingSection>,
    /// The stages of models that are asked, cheap ones first, with the rules by which the cascade may stop.
    pub stages: Vec<StageSection>,
    /// The texts that stand for a label in zero-shot models.
    pub prompts: BTreeMap<String, Vec<String>>,
    /// The texts for labels without `prompts`; `{label}` is replaced. `["a photo of {label}."]` where absent.
    pub prompt_templates: Option<Vec<String>>,
    /// The answer that stands for a label in a model that is asked the question. Where absent, `NO` for the
    /// first of two labels and `YES` for the second; for more than two, each label itself.
    pub answers: BTreeMap<String, String>,
}

/// `fusion = { … }` of a task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FusionSection {
    /// `linear` (weighted mean of probabilities), `log_linear` (weighted mean of log-probabilities), or
    /// `learned` (as `log_linear`, with weights and temperatures for each image, computed from the backbone's
    /// feature).
    pub method: String,
    /// The weight of each model, of which only the proportions matter; equal where none is given. With
    /// `learned`, these count where the learned weights cannot be evaluated.
    pub weights: BTreeMap<String, f64>,
}

impl Default for FusionSection {
    fn default() -> Self {
        Self { method: "linear".to_owned(), weights: BTreeMap::new() }
    }
}

/// `[tasks.NAME.scaling.MODEL]`: vector scaling of a model's votes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ScalingSection {
    /// The factor for each label, in their order: greater than 0.
    pub scale: Vec<f64>,
    /// The summand for each label, in their order.
    pub bias: Vec<f64>,
}

/// `[[tasks.NAME.stages]]`: models that are asked together.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StageSection {
    /// The names of configured models.
    pub models: Vec<String>,
    /// Those models whose failure does not fail the request.
    pub optional: Vec<String>,
    /// The queue depth of an earlier stage's model above which this stage is asked instead. Its own models
    /// must be optional: where they fail, the earlier stage is asked after all.
    pub burst_queue_depth: Option<usize>,
    /// The share that the learned weights must exceed for one of its models, beside those that have voted,
    /// for the stage to be asked: for models that cost money. The configured weights count where the learned
    /// ones cannot be evaluated.
    pub min_weight: Option<f64>,
    /// The rule by which the cascade may stop after this stage. Where absent, it only stops at its end.
    pub accept: Option<AcceptSection>,
}

/// `accept = { … }` of a stage.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AcceptSection {
    /// The least fused probability: greater than 0, at most 1. Required.
    pub confidence: Option<f64>,
    /// The least probability that the answer is correct, by the learned correctness estimator: greater than
    /// 0, at most 1. Replaces `confidence` where the estimator can be evaluated.
    pub correctness: Option<f64>,
    /// True if all successful votes so far must also have the same most probable label.
    pub agreement: bool,
}
