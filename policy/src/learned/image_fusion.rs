//! The output of the network that computes weights and temperatures for one image.

/// The weights and temperatures of all models for one image, as the network computes them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFusion {
    /// The logit of the weight of each model, then the logarithm of the inverse temperature of each.
    outputs: Vec<f32>,
}

impl ImageFusion {
    /// The bound of the logarithm of an inverse temperature, in either direction: a factor of 20, beyond
    /// which the image is unlike all that the network was trained on.
    pub const LOG_INVERSE_TEMPERATURE_MAX: f32 = 3.0;

    /// Returns the number of outputs of a network for the given number of models.
    pub const fn outputs(models: usize) -> usize {
        2 * models
    }

    /// Makes one of the outputs, two for each model.
    ///
    /// # Panics
    /// When their number is odd.
    pub fn new(outputs: Vec<f32>) -> Self {
        assert!(outputs.len().is_multiple_of(2), "two outputs for each model");
        Self { outputs }
    }

    fn models(&self) -> usize {
        self.outputs.len() / 2
    }

    /// Returns the weight logit of the model of this index; the softmax over the models that have voted gives
    /// their weights. `None` if there is no such model.
    pub fn weight_logit(&self, model: usize) -> Option<f32> {
        self.outputs[..self.models()].get(model).copied()
    }

    /// Returns the factor of the log-probabilities of the model of this index. `None` if there is no such
    /// model.
    pub fn inverse_temperature(&self, model: usize) -> Option<f32> {
        let logarithm = self.outputs[self.models()..].get(model)?;
        let bound = Self::LOG_INVERSE_TEMPERATURE_MAX;
        Some(logarithm.clamp(-bound, bound).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_model_has_a_weight_and_an_inverse_temperature() {
        let fusion = ImageFusion::new(vec![0.5, -0.5, 2.0_f32.ln(), -100.0]);
        assert_eq!([0, 1, 2].map(|model| fusion.weight_logit(model)), [Some(0.5), Some(-0.5), None]);
        let [first, second, third] = [0, 1, 2].map(|model| fusion.inverse_temperature(model));
        assert!((first.unwrap() - 2.0).abs() < 1e-6);
        assert!((second.unwrap() - (-3.0_f32).exp()).abs() < 1e-6, "kept within bounds");
        assert_eq!(third, None);
    }
}
