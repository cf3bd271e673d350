//! The networks that `concord fit` trains for a task: they compute the weight and temperature of each model's
//! vote, and the probability that an answer is right, from the backbone's feature of the image; knows
//! nothing of stages or of the cascade.

mod check;
mod correctness;
mod file;
mod image_fusion;
mod inference;
mod network;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::probability::{Distribution, Probability, Temperature};

pub use self::correctness::CorrectnessEstimator;
pub use self::image_fusion::ImageFusion;
pub(crate) use self::inference::LearnedInference;
pub use self::inference::{FallbackReason, LearnedPart};
pub use self::network::{Dense, Network};

/// The learned networks of a task, with the models that they were fitted to.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The model whose feature they read.
    backbone: Arc<str>,
    /// The models that have weights, in the order of [`ImageFusion`].
    models: Vec<Arc<str>>,
    weights: Option<Network>,
    /// Each by the models that have voted, in the order of their names.
    estimators: BTreeMap<Vec<Arc<str>>, CorrectnessEstimator>,
}

/// Returns the names sorted, so that the order in which models are asked does not matter.
fn names<'a>(models: impl IntoIterator<Item = &'a Arc<str>>) -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = models.into_iter().cloned().collect();
    names.sort();
    names
}

impl Learned {
    /// Makes an empty set of networks that read the feature of `backbone`.
    pub fn new(backbone: Arc<str>) -> Self {
        Self { backbone, models: Vec::new(), weights: None, estimators: BTreeMap::new() }
    }

    /// Adds the network whose outputs are the [`ImageFusion`] of the models, in this order.
    #[must_use]
    pub fn with_weights(self, models: Vec<Arc<str>>, network: Network) -> Self {
        Self { models, weights: Some(network), ..self }
    }

    /// Adds the network that estimates whether an answer of these models is right:
    /// [`CorrectnessEstimator::input`] in, log-odds out.
    #[must_use]
    pub fn with_estimator<'a>(
        mut self,
        models: impl IntoIterator<Item = &'a Arc<str>>,
        network: Network,
    ) -> Self {
        self.estimators.insert(names(models), CorrectnessEstimator::new(network));
        self
    }

    /// Returns the model whose feature is read.
    pub fn backbone(&self) -> &Arc<str> {
        &self.backbone
    }

    /// Returns whether there is no network.
    pub fn is_empty(&self) -> bool {
        self.weights.is_none() && self.estimators.is_empty()
    }

    /// Returns whether there are weights for this model.
    pub fn weighs(&self, model: &str) -> bool {
        self.weights.is_some() && self.models.iter().any(|known| **known == *model)
    }

    /// Returns whether there is a correctness estimator for answers of exactly these models.
    pub fn has_estimator<'a>(&self, models: impl IntoIterator<Item = &'a Arc<str>>) -> bool {
        self.estimators.contains_key(&names(models))
    }

    /// Returns every network, with the models that it was fitted to.
    pub fn networks(&self) -> impl Iterator<Item = (LearnedPart, &[Arc<str>], &Network)> {
        let weights =
            self.weights.iter().map(|network| (LearnedPart::Weights, self.models.as_slice(), network));
        let estimators = self
            .estimators
            .iter()
            .map(|(models, estimator)| (LearnedPart::Correctness, models.as_slice(), estimator.network()));
        weights.chain(estimators)
    }

    /// Computes the weights for an image; `None` if there are none, or the feature is not one of the
    /// backbone.
    pub(crate) fn weights_for(&self, feature: &[f32]) -> Option<ImageWeights<'_>> {
        let outputs = self.weights.as_ref()?.forward(feature)?;
        let is_of_models = outputs.len() == ImageFusion::outputs(self.models.len());
        is_of_models.then(|| ImageWeights { models: &self.models, fusion: ImageFusion::new(outputs) })
    }

    /// Estimates the probability that an answer of these models is right; `None` if no estimator was fitted
    /// to them, or the feature is not one of the backbone.
    pub(crate) fn correctness<'a>(
        &self,
        models: impl IntoIterator<Item = &'a Arc<str>>,
        answer: &Distribution,
        agreement: bool,
        feature: &[f32],
    ) -> Option<Probability> {
        self.estimators.get(&names(models))?.estimate(answer, agreement, feature)
    }
}

/// The weights and temperatures of all models for one image.
#[derive(Debug)]
pub(crate) struct ImageWeights<'a> {
    models: &'a [Arc<str>],
    fusion: ImageFusion,
}

/// The weight with which a vote is fused.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct EffectiveWeight {
    /// The share of the answer; those of all votes have the sum 1.
    pub(crate) share: f64,
    /// The factor of the log-probabilities, where it is learned.
    pub(crate) inverse_temperature: Option<f64>,
}

impl ImageWeights<'_> {
    /// Returns the effective weights of these models; `None` if one of them is unknown.
    pub(crate) fn effective_weights<'a>(
        &self,
        models: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> Option<Vec<EffectiveWeight>> {
        let index = |model: &Arc<str>| self.models.iter().position(|known| known == model);
        let indices: Vec<usize> = models.into_iter().map(index).collect::<Option<_>>()?;
        let logit = |&index: &usize| Some(f64::from(self.fusion.weight_logit(index)?));
        let logits: Vec<f64> = indices.iter().map(logit).collect::<Option<_>>()?;
        if logits.is_empty() {
            return None;
        }
        let shares = Distribution::softmax(&logits, Temperature::NEUTRAL);
        let weight = |(&index, &share): (&usize, &f64)| {
            let inverse_temperature = Some(f64::from(self.fusion.inverse_temperature(index)?));
            Some(EffectiveWeight { share, inverse_temperature })
        };
        indices.iter().zip(shares.probabilities()).map(weight).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    /// Returns a network with one input, which the output under test follows.
    fn network(inputs: usize, rows: &[Vec<f32>]) -> Network {
        let layer = Dense { weight: rows.concat(), bias: vec![0.0; rows.len()] };
        Network::new(vec![0.0; inputs], vec![1.0; inputs], vec![layer]).unwrap()
    }

    #[test]
    fn weights_are_renormalised_over_the_models_that_are_asked_for() {
        let learned = Learned::new(Arc::from("a"))
            .with_weights(models(&["a", "b"]), network(1, &[vec![0.0], vec![1.0], vec![2.0], vec![-1.0]]));
        let weights = learned.weights_for(&[2.0_f32.ln()]).unwrap();
        let found = weights.effective_weights(&models(&["b", "a"])).unwrap();
        let expected = [(2.0 / 3.0, 0.5), (1.0 / 3.0, 4.0)];
        for (EffectiveWeight { share, inverse_temperature }, (expected, sharpened)) in
            found.into_iter().zip(expected)
        {
            assert!((share - expected).abs() < 1e-6, "{share}");
            assert!((inverse_temperature.unwrap() - sharpened).abs() < 1e-6, "{inverse_temperature:?}");
        }
        assert_eq!(weights.effective_weights(&models(&["a", "z"])), None, "a model that it does not know");
        assert!(learned.weights_for(&[0.0, 0.0]).is_none(), "the feature of another backbone");
    }

    #[test]
    fn a_correctness_estimator_is_found_whatever_the_order_of_the_models() {
        let correctness = network(CorrectnessEstimator::NUMBERS + 1, &[vec![0.0, 0.0, 0.0, 0.0, 1.0]]);
        let learned = Learned::new(Arc::from("a")).with_estimator(&models(&["b", "a"]), correctness);
        let answer = Distribution::new(vec![0.25, 0.75]).unwrap();
        let value = |names: &[&str], feature: &[f32]| {
            learned.correctness(&models(names), &answer, true, feature).map(Probability::get)
        };
        assert_eq!(value(&["a", "b"], &[0.0]), Some(0.5));
        assert!(value(&["a", "b"], &[3.0]).unwrap() > 0.9);
        assert_eq!(value(&["a"], &[0.0]), None, "no correctness estimator for these");
        assert_eq!(value(&["a", "b"], &[]), None, "no feature");
    }
}
