//! Defines the layers of a head by the tensors in its file.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::nn::layers::Linear;
use crate::runtime::device::Placement;
use crate::snapshot::weights::{SafetensorsFile, WeightLoader};

/// The final-norm output of a backbone.
#[derive(Debug)]
pub(crate) struct Features {
    /// The CLS token, [batch, hidden].
    pub(crate) cls: Tensor,
    /// The patch tokens, [batch, patches, hidden], or their mean as the only one, where no head attends to
    /// them.
    pub(crate) patches: Tensor,
}

/// A head, in one of the forms that its file's tensors distinguish.
#[derive(Debug)]
pub(crate) enum Head {
    /// A linear head on the CLS token: `linear.weight` of [labels, hidden].
    Cls(Linear),
    /// A linear head on the CLS token and the mean of the patch tokens: `linear.weight` of [labels,
    /// 2·hidden].
    ClsAndMean(Linear),
    /// An MLP with attention pooling: `pool.query` of \[hidden\] and `mlp.{0…3}`, four layers with GELU
    /// between them, on the CLS token and the patch tokens pooled by softmax(patches · query / √hidden).
    AttentionMlp { query: Tensor, layers: Vec<Linear> },
}

/// The number of layers of the MLP head.
pub(super) const MLP_LAYERS: usize = 4;

/// The names in a head's file of a linear head's layer and of an MLP's pooling query.
const LINEAR: &str = "linear";
const QUERY: &str = "pool.query";

impl Head {
    /// Loads a head file for a backbone with the given hidden width.
    ///
    /// # Errors
    /// Fails when the file is not a head, is for another width, or was trained for other labels than `labels`
    /// (where the file's metadata names them).
    pub(crate) fn load(
        path: &Path,
        hidden: i64,
        labels: &[&str],
        place: Placement,
    ) -> Result<Self, ModelError> {
        let head = Self::load_named(path, LINEAR, hidden, place)?;
        let outputs = usize::try_from(head.labels()).unwrap_or(0);
        if outputs != labels.len() {
            let message = format!("gives {outputs} logits, but the task has {} labels", labels.len());
            return Err(ModelError::malformed(path, message));
        }
        let file = SafetensorsFile::open(path)?;
        if let Some(trained) = file.note("labels") {
            let trained: Vec<String> =
                serde_json::from_str(trained).map_err(|error| ModelError::malformed(path, error))?;
            if let Some(index) =
                (0..outputs).find(|&index| trained.get(index).map(String::as_str) != Some(labels[index]))
            {
                let found = trained.get(index).map_or("nothing", String::as_str);
                let message = format!(
                    "was trained for label {index} = {found:?}, the task has {:?} there",
                    labels[index]
                );
                return Err(ModelError::malformed(path, message));
            }
        }
        Ok(head)
    }

    /// Loads a head whose linear layer has the given name.
    pub(crate) fn load_named(
        path: &Path,
        linear: &str,
        hidden: i64,
        place: Placement,
    ) -> Result<Self, ModelError> {
        let mut weights = WeightLoader::open(path, &[path.to_owned()], place.device, place.kind)?;
        let head = if weights.has(QUERY) {
            Self::load_mlp(&mut weights, hidden)
        } else {
            let weight = format!("{linear}.weight");
            let shape = weights.shape(&weight).unwrap_or_default();
            let outputs = shape.first().copied().unwrap_or(0);
            let on_cls = shape.get(1) == Some(&hidden);
            let inputs = if on_cls { hidden } else { 2 * hidden };
            let layer = Linear::load(&mut weights, linear, inputs, outputs, true);
            if on_cls { Self::Cls(layer) } else { Self::ClsAndMean(layer) }
        };
        weights.finish()?;
        Ok(head)
    }

    fn load_mlp(weights: &mut WeightLoader, hidden: i64) -> Self {
        let query = weights.tensor(QUERY, &[hidden]);
        let mut inputs = 2 * hidden;
        let mut layers = Vec::new();
        for index in 0..MLP_LAYERS {
            let name = format!("mlp.{index}");
            let outputs = weights
                .shape(&format!("{name}.weight"))
                .and_then(|shape| shape.first().copied())
                .unwrap_or(0);
            layers.push(Linear::load(weights, &name, inputs, outputs, true));
            inputs = outputs;
        }
        Self::AttentionMlp { query, layers }
    }

    fn labels(&self) -> i64 {
        match self {
            Self::Cls(linear) | Self::ClsAndMean(linear) => linear.outputs(),
            Self::AttentionMlp { layers, .. } => layers.last().map_or(0, Linear::outputs),
        }
    }

    /// Returns a copy that shares its tensors with this head.
    pub(super) fn copy(&self) -> Self {
        let layer = |layer: &Linear| {
            Linear::from_tensors(layer.weight().shallow_clone(), layer.bias().map(Tensor::shallow_clone))
        };
        match self {
            Self::Cls(linear) => Self::Cls(layer(linear)),
            Self::ClsAndMean(linear) => Self::ClsAndMean(layer(linear)),
            Self::AttentionMlp { query, layers } => {
                let layers = layers.iter().map(layer).collect();
                Self::AttentionMlp { query: query.shallow_clone(), layers }
            }
        }
    }

    /// Returns the width of each hidden layer; empty where there is none.
    pub(super) fn hidden_widths(&self) -> Vec<i64> {
        match self {
            Self::Cls(_) | Self::ClsAndMean(_) => Vec::new(),
            Self::AttentionMlp { layers, .. } => {
                layers.iter().take(layers.len() - 1).map(Linear::outputs).collect()
            }
        }
    }

    /// Returns the tensors by their names in a head's file.
    pub(super) fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        let mut add = |name: &str, layer: &Linear| {
            tensors.push((format!("{name}.weight"), layer.weight().shallow_clone()));
            tensors.extend(layer.bias().map(|bias| (format!("{name}.bias"), bias.shallow_clone())));
        };
        match self {
            Self::Cls(layer) | Self::ClsAndMean(layer) => add(LINEAR, layer),
            Self::AttentionMlp { query, layers } => {
                layers.iter().enumerate().for_each(|(index, layer)| add(&format!("mlp.{index}"), layer));
                tensors.push((QUERY.to_owned(), query.shallow_clone()));
            }
        }
        tensors
    }

    /// Computes the logits, [batch, labels].
    pub(crate) fn forward(&self, features: &Features) -> Tensor {
        self.forward_dropping(features, |_, hidden| hidden)
    }

    /// Computes the logits with dropout: `drop` receives each hidden layer's number and its output after the
    /// activation. It may put dimensions before the batch's, and the logits then have them as well.
    pub(super) fn forward_dropping(
        &self,
        features: &Features,
        drop: impl Fn(usize, Tensor) -> Tensor,
    ) -> Tensor {
        match self {
            Self::Cls(linear) => linear.forward(&features.cls),
            Self::ClsAndMean(linear) => {
                let mean = features.patches.mean_dim([1].as_slice(), false, None::<Kind>);
                linear.forward(&Tensor::cat(&[&features.cls, &mean], -1))
            }
            Self::AttentionMlp { query, layers } => {
                let scores = features.patches.matmul(query) / (query.size()[0] as f64).sqrt();
                let shares = scores.softmax(-1, None::<Kind>).unsqueeze(1);
                let pooled = shares.matmul(&features.patches).squeeze_dim(1);
                let mut x = Tensor::cat(&[&features.cls, &pooled], -1);
                for (index, layer) in layers.iter().enumerate() {
                    x = layer.forward(&x);
                    if index + 1 < layers.len() {
                        x = drop(index, x.gelu("none"));
                    }
                }
                x
            }
        }
    }
}
