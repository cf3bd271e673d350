//! A small multi-layer perceptron in plain Rust, which computes weights or correctness from a backbone's
//! feature of an image. It is trained elsewhere.

/// Bounds of a small network, far above what `concord fit` trains.
const LAYERS_MAX: usize = 4;
const WIDTH_MAX: usize = 16_384;

/// Standardisation, then linear layers with `ReLU` between them.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    mean: Vec<f32>,
    /// The factor of an input's difference from its mean.
    scale: Vec<f32>,
    layers: Vec<Dense>,
}

/// `weight` · x + `bias`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// \[outputs, inputs\], row after row.
    pub weight: Vec<f32>,
    /// \[outputs\]
    pub bias: Vec<f32>,
}

impl Network {
    /// Makes a network of the mean and the scale of each input, and the layers.
    ///
    /// # Errors
    /// When sizes do not fit each other, there is no layer or too many, or a number is not finite.
    pub fn new(mean: Vec<f32>, scale: Vec<f32>, layers: Vec<Dense>) -> Result<Self, String> {
        if mean.len() != scale.len() {
            return Err(format!("{} means and {} scales", mean.len(), scale.len()));
        }
        if layers.is_empty() || layers.len() > LAYERS_MAX {
            return Err(format!("{} layers: must be from 1 to {LAYERS_MAX}", layers.len()));
        }
        let mut width = mean.len();
        for (index, Dense { weight, bias }) in layers.iter().enumerate() {
            if width == 0 || width > WIDTH_MAX || bias.is_empty() || bias.len() > WIDTH_MAX {
                return Err(format!("layer {index} has a width that is not from 1 to {WIDTH_MAX}"));
            }
            if weight.len() != width * bias.len() {
                let (found, outputs) = (weight.len(), bias.len());
                return Err(format!(
                    "layer {index} has {found} weights for {width} inputs and {outputs} outputs"
                ));
            }
            width = bias.len();
        }
        let network = Self { mean, scale, layers };
        if network.numbers().all(f32::is_finite) {
            Ok(network)
        } else {
            Err("a number is not finite".to_owned())
        }
    }

    fn numbers(&self) -> impl Iterator<Item = f32> {
        let of_layers = self.layers.iter().flat_map(|layer| layer.weight.iter().chain(&layer.bias));
        self.mean.iter().chain(&self.scale).chain(of_layers).copied()
    }

    /// Returns the number of inputs.
    pub fn inputs(&self) -> usize {
        self.mean.len()
    }

    /// Returns the number of outputs.
    pub fn outputs(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.bias.len())
    }

    /// Returns the mean and the scale of each input.
    pub fn standardisation(&self) -> (&[f32], &[f32]) {
        (&self.mean, &self.scale)
    }

    /// Returns the layers, in order.
    pub fn layers(&self) -> &[Dense] {
        &self.layers
    }

    /// Computes the outputs for `input`; `None` if its length is not the number of inputs, or an output is
    /// not finite.
    pub fn forward(&self, input: &[f32]) -> Option<Vec<f32>> {
        if input.len() != self.inputs() {
            return None;
        }
        let standardised = input.iter().zip(&self.mean).zip(&self.scale);
        let mut values: Vec<f32> =
            standardised.map(|((input, mean), scale)| (input - mean) * scale).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                values.iter_mut().for_each(|value| *value = value.max(0.0));
            }
            values = layer.forward(&values);
        }
        values.iter().all(|value| value.is_finite()).then_some(values)
    }
}

impl Dense {
    fn forward(&self, input: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(input.len());
        rows.zip(&self.bias).map(|(row, bias)| bias + dot(row, input)).collect()
    }
}

/// Returns the dot product, in eight sums that a processor adds up side by side.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (lefts, rights) = (left.chunks_exact(8), right.chunks_exact(8));
    let rest: f32 = lefts.remainder().iter().zip(rights.remainder()).map(|(left, right)| left * right).sum();
    for (left, right) in lefts.zip(rights) {
        for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
            *sum += left * right;
        }
    }
    rest + sums.iter().sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(weight: &[f32], bias: &[f32]) -> Dense {
        Dense { weight: weight.to_vec(), bias: bias.to_vec() }
    }

    #[test]
    fn inputs_are_standardised_and_layers_have_relu_between_them() {
        let layers = vec![dense(&[1.0, 0.0, 0.0, -1.0], &[0.5, 0.0]), dense(&[2.0, 10.0], &[1.0])];
        let network = Network::new(vec![1.0, 2.0], vec![2.0, 1.0], layers).unwrap();
        // (2 - 1) * 2 + 0.5 = 2.5; -(3 - 2) is cut off; 2 * 2.5 + 1.
        assert_eq!(network.forward(&[2.0, 3.0]), Some(vec![6.0]));
        assert_eq!(network.forward(&[2.0]), None, "too few inputs");
        assert_eq!(network.forward(&[f32::MAX, 3.0]), None, "not finite");
    }

    #[test]
    fn eight_sums_are_the_sum() {
        let left: Vec<f32> = (0..21_u8).map(f32::from).collect();
        let right: Vec<f32> = (0..21_u8).map(|number| f32::from(number % 3)).collect();
        assert_eq!(
            dot(&left, &right),
            left.iter().zip(&right).map(|(left, right)| left * right).sum::<f32>()
        );
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let one = || dense(&[1.0, 2.0], &[0.0]);
        for (mean, scale, layers, expected) in [
            (vec![0.0; 2], vec![1.0], vec![one()], "2 means and 1 scales"),
            (vec![0.0; 2], vec![1.0; 2], vec![], "0 layers"),
            (vec![0.0; 3], vec![1.0; 3], vec![one()], "layer 0 has 2 weights for 3 inputs and 1 outputs"),
            (vec![], vec![], vec![one()], "layer 0 has a width"),
            (vec![0.0; 2], vec![f32::NAN; 2], vec![one()], "not finite"),
        ] {
            let error = Network::new(mean, scale, layers).unwrap_err();
            assert!(error.contains(expected), "{expected:?} is missing in {error:?}");
        }
    }
}
