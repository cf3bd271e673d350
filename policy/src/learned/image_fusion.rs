//! What a network that weighs models says about one image.

/// How much each model counts for an image, and how sure it may be: the outputs of a network that was trained
/// for that.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFusion {
    /// For each model the logit of its weight, then for each the logarithm of its inverse temperature.
    outputs: Vec<f32>,
}

impl ImageFusion {
    /// Logarithms of inverse temperatures are kept between this and its negative: a factor of 20 either way,
    /// beyond which a network is asked about images unlike all that it was trained on.
    pub const LOG_INVERSE_TEMPERATURE_MAX: f32 = 3.0;

    /// How many outputs a network for so many models has.
    pub const fn outputs(models: usize) -> usize {
        2 * models
    }

    /// Takes the outputs, two for each model.
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

    /// Of the model of this index; the softmax over the models that have voted are their weights. `None` for
    /// no such model.
    pub fn weight_logit(&self, model: usize) -> Option<f32> {
        self.outputs[..self.models()].get(model).copied()
    }

    /// What the log-probabilities of the model of this index are multiplied by. `None` for no such model.
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
