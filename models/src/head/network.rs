//! A head's layers, as its file has them.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::nn::layers::Linear;
use crate::runtime::device::Placement;
use crate::snapshot::weights::{SafetensorsFile, WeightLoader};

/// The final-norm output of a backbone.
#[derive(Debug)]
pub(crate) struct Features {
    /// [batch, hidden], the CLS token.
    pub(crate) cls: Tensor,
    /// [batch, patches, hidden]; or their mean as the only one, where no head attends to them.
    pub(crate) patches: Tensor,
}

/// A head as its file describes it by the tensors it has.
#[derive(Debug)]
pub(crate) enum Head {
    /// `linear.weight` of [labels, hidden]: on the CLS token.
    Cls(Linear),
    /// `linear.weight` of [labels, 2·hidden]: on the CLS token and the mean of the patch tokens.
    ClsAndMean(Linear),
    /// `pool.query` of \[hidden\] and `mlp.{0…3}`: four layers with GELU between them, on the CLS token
    /// and the patch tokens pooled by softmax(patches · query / √hidden).
    AttentionMlp { query: Tensor, layers: Vec<Linear> },
}

/// How many layers the MLP head has.
pub(super) const MLP_LAYERS: usize = 4;

/// What a linear head's layer is called in its file, and the query of an MLP's pooling.
const LINEAR: &str = "linear";
const QUERY: &str = "pool.query";

impl Head {
    /// Loads a head file for a backbone of this width.
    ///
    /// # Errors
    /// When it is no head, is for another width, or was trained for other labels than `labels` (where
    /// the file's metadata names them).
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

    /// A head whose linear layer has this name.
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

    /// The same tensors, as another head.
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

    /// Each hidden layer's width; none where there is no hidden layer.
    pub(super) fn hidden_widths(&self) -> Vec<i64> {
        match self {
            Self::Cls(_) | Self::ClsAndMean(_) => Vec::new(),
            Self::AttentionMlp { layers, .. } => {
                layers.iter().take(layers.len() - 1).map(Linear::outputs).collect()
            }
        }
    }

    /// Its tensors by their names in a file.
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

    /// [batch, labels].
    pub(crate) fn forward(&self, features: &Features) -> Tensor {
        self.forward_dropping(features, |_, hidden| hidden)
    }

    /// The same with dropout: `drop` is given each hidden layer's number and its output, after the activation. It may
    /// put dimensions before that of the batch, which the logits have as well then.
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
