//! Computes Monte-Carlo dropout: a head runs several times with different units dropped, and the spread of
//! its outputs measures its epistemic uncertainty (Gal and Ghahramani 2016, "Dropout as a Bayesian
//! approximation", arXiv 1506.02142).
//!
//! The units are chosen once, from a seed, when a head is loaded: an image gets the same result at any time
//! and in any batch, so that votes can be cached. All passes are one batched product a layer, and the
//! backbone runs once.

use concord_policy::ModelOutput;
use tch::{Device, Kind, TchError, Tensor};

use super::{Features, Head};
use crate::output::outputs_with_features;

/// The seed of the masks: any text, but the same on every machine.
const SEED: &[u8] = b"concord monte-carlo dropout 1";
/// The number of values of a 32-bit draw, to which the rate is scaled.
const NUMBERS: f64 = 4_294_967_296.0;

/// The masks of the units that are dropped in each pass.
#[derive(Debug)]
pub(super) struct McDropout {
    /// A mask for each hidden layer, [passes, 1, width]: 0 where a unit is dropped, 1 / (1 − rate) where it
    /// is kept.
    masks: Vec<Tensor>,
    passes: usize,
}

impl McDropout {
    /// Draws the masks for a head that was trained with this rate of dropout; makes at least one pass.
    pub(super) fn new(head: &Head, rate: f64, passes: usize, device: Device) -> Self {
        let mut numbers = blake3::Hasher::new().update(SEED).finalize_xof();
        let mut mask = |width: i64| {
            let mut bytes = vec![0; 4 * passes * usize::try_from(width).unwrap_or(0)];
            numbers.fill(&mut bytes);
            let (words, _) = bytes.as_chunks::<4>();
            let is_kept = |word: &[u8; 4]| f64::from(u32::from_le_bytes(*word)) >= rate * NUMBERS;
            let kept = 1.0 / (1.0 - rate) as f32;
            let factors: Vec<f32> = words.iter().map(|word| if is_kept(word) { kept } else { 0.0 }).collect();
            Tensor::from_slice(&factors).view([-1, 1, width]).to_device(device)
        };
        Self { masks: head.hidden_widths().into_iter().map(&mut mask).collect(), passes }
    }

    /// Returns the output for each image: the logarithm of the mean probabilities over the passes, and as
    /// `uncertainty` the disagreement of the passes in nats. This is the entropy of the mean less the mean
    /// entropy: the mutual information of the prediction and the head's weights (BALD: Houlsby et al. 2011,
    /// arXiv 1112.5745; Gal, Islam and Ghahramani 2017, arXiv 1703.02910), from 0 to ln(labels).
    pub(super) fn scores(&self, head: &Head, features: &Features) -> Result<Vec<ModelOutput>, TchError> {
        let logits = head.forward_dropping(features, |layer, hidden| hidden * &self.masks[layer]);
        let each = logits.log_softmax(-1, None::<Kind>); // [passes, batch, labels]
        let mean = each.logsumexp([0].as_slice(), false) - (self.passes as f64).ln();
        let disagreement = entropy(&mean) - entropy(&each).mean_dim([0].as_slice(), false, None::<Kind>);
        let columns = [mean, disagreement.clamp_min(0.0).unsqueeze(-1)];
        let mut scores = outputs_with_features(&Tensor::f_cat(&columns, -1)?, &features.cls)?;
        for of_image in &mut scores {
            of_image.evidence.uncertainty = of_image.logits.pop();
        }
        Ok(scores)
    }
}

/// Returns the entropy in nats of distributions over the last dimension, given by their logarithms.
fn entropy(logarithms: &Tensor) -> Tensor {
    -(logarithms.exp() * logarithms).sum_dim_intlist([-1].as_slice(), false, None::<Kind>)
}
