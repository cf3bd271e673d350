//! `[tasks.NAME]` as it is written in `ensemble.toml`, before anything but its types is checked.
//!
//! Every field has a default, so that one that is missing or has the wrong type does not hide what is wrong
//! with the others; [`Policy::from_section`](crate::Policy::from_section) says which must be there.

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
    /// How votes are combined.
    pub fusion: FusionSection,
    /// The file of what `concord fit` has learned for this task, relative to the folder of `ensemble.toml`:
    /// weights and temperatures for each image, and correctness estimators.
    pub learned: Option<String>,
    /// The temperature of each model: what its logits are divided by. 1.0 where absent.
    pub calibration: BTreeMap<String, f64>,
    /// In place of a temperature, what each label's log-probability by a model is multiplied by, and what is
    /// added then.
    pub scaling: BTreeMap<String, ScalingSection>,
    /// Which models are asked, cheap ones first, and when an answer is good enough to stop.
    pub stages: Vec<StageSection>,
    /// For a label, the texts that stand for it in zero-shot models.
    pub prompts: BTreeMap<String, Vec<String>>,
    /// The texts for labels without `prompts`; `{label}` is replaced. `["a photo of {label}."]` where absent.
    pub prompt_templates: Option<Vec<String>>,
    /// For a label, what a model that is asked the question answers when it means that label. Where absent,
    /// `NO` for the first of two labels and `YES` for the second; of more than two, each label itself.
    pub answers: BTreeMap<String, String>,
}

/// `fusion = { … }` of a task.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct FusionSection {
    /// `linear` (weighted mean of probabilities), `log_linear` (weighted mean of log-probabilities), or
    /// `learned` (as `log_linear`, with weights and temperatures for each image by what the backbone made of
    /// it).
    pub method: String,
    /// How much each model counts; only their proportions matter. All the same where none is given. With
    /// `learned`, what counts where the learned weights cannot be read.
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
    /// For each label, in their order: greater than 0.
    pub scale: Vec<f64>,
    /// For each label, in their order.
    pub bias: Vec<f64>,
}

/// `[[tasks.NAME.stages]]`: models that are asked together.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct StageSection {
    /// Names of configured models.
    pub models: Vec<String>,
    /// Those of them whose failure does not fail the request.
    pub optional: Vec<String>,
    /// Asked instead of an earlier stage while more images than this wait for one of that stage's models. Its
    /// own models must be optional: where they fail, the earlier stage is asked after all.
    pub burst_queue_depth: Option<usize>,
    /// Asked only where the learned weights give one of its models more than this share beside those that
    /// have voted: for models that cost money. The configured weights count where they cannot be read.
    pub min_weight: Option<f64>,
    /// When the cascade may stop after this stage. Where absent, it never does but at the end.
    pub accept: Option<AcceptSection>,
}

/// `accept = { … }` of a stage.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AcceptSection {
    /// The least fused probability: greater than 0, at most 1. Must be given.
    pub confidence: Option<f64>,
    /// How likely the answer must be right, by the learned correctness estimator: greater than 0, at most 1.
    /// Counts instead of `confidence` where the correctness estimator can be read.
    pub correctness: Option<f64>,
    /// Whether all successful votes so far must also favour the same label.
    pub agreement: bool,
}
