//! The inference of the learned networks about one image, as far as its votes are known.

use std::cell::OnceCell;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{EffectiveWeight, ImageWeights, Learned};
use crate::probability::{Distribution, Probability};
use crate::vote::Vote;

/// A decision that learned networks make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LearnedPart {
    /// The weight and the temperature of each vote. Without it, the configured weights apply.
    Weights,
    /// The probability that the answer is correct. Without it, the confidence applies.
    Correctness,
    /// The decision to ask a stage, by the weights that its models would have. Without it, their configured
    /// weights apply.
    MinWeight,
}

/// The reason why a learned part could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackReason {
    /// The model whose feature the part reads had not been asked yet.
    BackboneNotAsked,
    /// The model whose feature the part reads has failed.
    BackboneFailed,
    /// The model has voted, but there is no feature with its vote.
    NoFeature,
    /// The part was fitted to other models than those that have voted, or to another backbone.
    NotFitted,
}

impl LearnedPart {
    /// Returns the name that responses and metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Correctness => "correctness",
            Self::MinWeight => "min_weight",
        }
    }
}

impl FallbackReason {
    /// Returns the name that responses and metrics have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BackboneNotAsked => "backbone_not_asked",
            Self::BackboneFailed => "backbone_failed",
            Self::NoFeature => "no_feature",
            Self::NotFitted => "not_fitted",
        }
    }
}

/// The learned networks of a task, with the feature of one image.
#[derive(Debug)]
pub(crate) struct LearnedInference<'a> {
    learned: Option<&'a Learned>,
    feature: Result<&'a [f32], FallbackReason>,
    /// Computed at the first use, for all stages.
    weights: OnceCell<Option<ImageWeights<'a>>>,
}

impl<'a> LearnedInference<'a> {
    /// Makes an inference without votes.
    pub(crate) fn new(learned: Option<&'a Learned>) -> Self {
        Self { learned, feature: Err(FallbackReason::BackboneNotAsked), weights: OnceCell::new() }
    }

    /// Takes the feature, if this is the backbone's vote.
    pub(crate) fn add_vote(&mut self, vote: &'a Vote, is_usable: bool) {
        if self.learned.is_some_and(|learned| *learned.backbone() == vote.model) {
            self.feature = match &vote.output {
                Ok(output) if is_usable => {
                    output.evidence.feature.as_deref().ok_or(FallbackReason::NoFeature)
                }
                _ => Err(FallbackReason::BackboneFailed),
            };
        }
    }

    /// Returns the effective weights of the votes of these models.
    pub(crate) fn effective_weights<'b>(
        &self,
        models: impl IntoIterator<Item = &'b Arc<str>>,
    ) -> Result<Vec<EffectiveWeight>, FallbackReason> {
        let learned = self.learned.ok_or(FallbackReason::NotFitted)?;
        let feature = self.feature?;
        let weights = self.weights.get_or_init(|| learned.weights_for(feature)).as_ref();
        weights.and_then(|weights| weights.effective_weights(models)).ok_or(FallbackReason::NotFitted)
    }

    /// Estimates the probability that this answer of these models is right.
    pub(crate) fn correctness<'b>(
        &self,
        models: impl IntoIterator<Item = &'b Arc<str>>,
        answer: &Distribution,
        agreement: bool,
    ) -> Result<Probability, FallbackReason> {
        let learned = self.learned.ok_or(FallbackReason::NotFitted)?;
        learned.correctness(models, answer, agreement, self.feature?).ok_or(FallbackReason::NotFitted)
    }
}
