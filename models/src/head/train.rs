//! Trains a head with `AdamW` on fixed features, with early stopping on a validation set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use concord_policy::ModelOutput;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Reduction, Tensor};

use super::feature_dataset::positions;
use super::file::{DROPOUT, write_new};
use super::network::MLP_LAYERS;
use super::{FeatureDataset, FeatureKind, Features, Head, TaskHead};
use crate::ModelError;
use crate::nn::layers::Linear;
use crate::runtime::device::Placement;
use crate::runtime::rng::RNG;

/// The term that is added to standard deviations, so that a feature that hardly varies is not blown up.
const DEVIATION_MIN: f64 = 1e-4;
/// The smallest improvement of an epoch, in nats. Where no image is misclassified any more, the loss keeps
/// falling, and the head only becomes more confident, not better.
const GAIN_MIN: f64 = 1e-4;
/// The batch size of evaluation and of the feature statistics: 256 images take about 600 MB with the tokens
/// of the largest backbones.
const JUDGED_BATCH: usize = 256;
/// The groups of parameters in the optimiser: weights decay, while biases and the pooling's query do not.
const DECAYING: usize = 0;
const FREE: usize = 1;

/// The architecture of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// A linear layer on the CLS token and the mean of the patch tokens.
    Linear,
    /// A linear layer on the CLS token.
    LinearCls,
    /// Four layers on the CLS token and the patch tokens pooled by attention, with dropout.
    Mlp,
}

impl HeadKind {
    /// Returns the name in the metadata of a head's file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::LinearCls => "linear-cls",
            Self::Mlp => "mlp",
        }
    }

    /// Returns the features that such a head is trained on.
    pub fn features(self) -> FeatureKind {
        match self {
            Self::Linear | Self::LinearCls => FeatureKind::Pooled,
            Self::Mlp => FeatureKind::Tokens,
        }
    }
}

/// The settings of a head's training.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadTraining {
    /// The architecture of the head.
    pub kind: HeadKind,
    /// The number of labels.
    pub labels: usize,
    /// The most passes over the training images.
    pub epochs: usize,
    /// The number of epochs without improvement on the validation images after which training stops.
    pub patience: usize,
    /// The learning rate of `AdamW`.
    pub learning_rate: f64,
    /// The weight decay of `AdamW` (Loshchilov and Hutter 2019, arXiv 1711.05101), for weights.
    pub weight_decay: f64,
    /// The share of units that are dropped from each hidden layer's output; 0 for heads without hidden
    /// layers.
    pub dropout: f64,
    /// The number of images in a step.
    pub batch: usize,
    /// True if the loss is weighted in inverse proportion to the number of training images of the label, so
    /// that rare labels count as much as frequent ones.
    pub balanced: bool,
    /// The seed of the initial weights, the order of the images and the dropout. The same seed gives the same
    /// head on one machine.
    pub seed: u64,
}

/// The result of an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epoch {
    /// The number of the epoch, from 1.
    pub number: usize,
    /// The mean loss of the epoch's steps, with dropout.
    pub training_loss: f64,
    /// The loss on the validation images after the epoch: their mean NLL, weighted as in training.
    pub validation_loss: f64,
    /// True if the epoch is better than all before it by more than a minimal margin.
    pub is_best: bool,
}

/// A head as it was after its best epoch.
#[derive(Debug)]
pub struct TrainedHead {
    head: Head,
    training: HeadTraining,
    device: Device,
    /// The best epoch on the validation images.
    pub best: Epoch,
    /// The number of epochs that ran.
    pub epochs: usize,
}

/// Trains a head on the images of the set at the positions `training`, as long as it improves on those at
/// `validation`, on the device and in the type of `place`; `on_epoch` receives the result of each epoch.
///
/// # Errors
/// Fails when training diverges, or libtorch fails.
pub fn train_head(
    set: &FeatureDataset,
    [training, validation]: [&[usize]; 2],
    options: &HeadTraining,
    place: Placement,
    mut on_epoch: impl FnMut(&Epoch),
) -> Result<TrainedHead, ModelError> {
    let device = place.device;
    // The random generator is global: another thread that draws numbers would change the ones drawn here.
    let _drawing = RNG.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(options.seed.cast_signed());
    let store = nn::VarStore::new(device);
    let network = Network::new(&store, set, training, options);
    let adam = nn::AdamW { wd: options.weight_decay, ..nn::AdamW::default() };
    let mut optimiser = adam.build(&store, options.learning_rate)?;
    optimiser.set_weight_decay_group(FREE, 0.0);
    let weights = class_weights(set, training, options, device);
    let loss = |logits: &Tensor, labels: &Tensor| {
        logits.cross_entropy_loss(labels, weights.as_ref(), Reduction::Mean, -100, 0.0)
    };
    let mut best: Option<TrainedHead> = None;
    for number in 1..=options.epochs {
        let mut losses = Vec::new();
        for images in shuffled(training).split(i64::try_from(options.batch).unwrap_or(i64::MAX), 0) {
            let (features, labels) = set.batch(&images, device);
            let drop = |_, hidden: Tensor| hidden.dropout(options.dropout, true);
            let head = network.head(Tensor::shallow_clone);
            let step = loss(&head.forward_dropping(&features, drop), &labels);
            optimiser.backward_step(&step);
            losses.push(step.double_value(&[]));
        }
        let head = tch::no_grad(|| network.head(Tensor::copy));
        let validation_loss = loss_on(&head, set, validation, weights.as_ref(), device);
        let training_loss = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        if !(training_loss.is_finite() && validation_loss.is_finite()) {
            let message = format!("the training diverged in epoch {number}: choose a lower learning rate");
            return Err(ModelError::Unsupported(message));
        }
        let is_best = best.as_ref().is_none_or(|best| validation_loss < best.best.validation_loss - GAIN_MIN);
        let epoch = Epoch { number, training_loss, validation_loss, is_best };
        on_epoch(&epoch);
        if is_best {
            best = Some(TrainedHead { head, training: options.clone(), device, best: epoch, epochs: number });
        } else if let Some(best) = &mut best {
            best.epochs = number;
            if number - best.best.number >= options.patience {
                break;
            }
        }
    }
    best.ok_or_else(|| ModelError::Unsupported("a head needs at least one epoch".to_owned()))
}

impl TrainedHead {
    /// Returns the output for the images at these positions, in the given number of passes with dropout, or
    /// without dropout where there are none or the head was trained without.
    ///
    /// # Errors
    /// Fails when libtorch does.
    pub fn scores(
        &self,
        set: &FeatureDataset,
        images: &[usize],
        passes: usize,
    ) -> Result<Vec<ModelOutput>, ModelError> {
        let asked = TaskHead::of(self.head.copy(), self.training.dropout, passes, self.device);
        let mut scores = Vec::with_capacity(images.len());
        for batch in images.chunks(JUDGED_BATCH) {
            let (features, _) = set.batch(&positions(batch), self.device);
            scores.extend(tch::no_grad(|| asked.scores(&features))?);
        }
        Ok(scores)
    }

    /// Writes the head beside a snapshot as `head.TASK.vN.safetensors` with an unused N, and returns that
    /// name. The file's metadata holds the training settings and the given `notes`.
    ///
    /// # Errors
    /// Fails when the folder cannot be written to.
    pub fn write(
        &self,
        folder: &Path,
        task: &str,
        labels: &[String],
        mut notes: BTreeMap<String, String>,
    ) -> Result<PathBuf, ModelError> {
        let HeadTraining { kind, dropout, seed, learning_rate, weight_decay, batch, balanced, .. } =
            &self.training;
        let labels = serde_json::to_string(labels).map_err(|error| ModelError::malformed(folder, error))?;
        let class_weight = if *balanced { "balanced" } else { "none" };
        notes.extend([
            ("task".to_owned(), task.to_owned()),
            ("labels".to_owned(), labels),
            ("kind".to_owned(), kind.name().to_owned()),
            (DROPOUT.to_owned(), dropout.to_string()),
            ("seed".to_owned(), seed.to_string()),
            ("learning_rate".to_owned(), learning_rate.to_string()),
            ("weight_decay".to_owned(), weight_decay.to_string()),
            ("batch".to_owned(), batch.to_string()),
            ("class_weight".to_owned(), class_weight.to_owned()),
            ("epoch".to_owned(), format!("{} of {}", self.best.number, self.epochs)),
        ]);
        write_new(&self.head, folder, task, &notes)
    }
}

/// A head whose parameters are being trained.
struct Network {
    kind: HeadKind,
    /// The mean of the first layer's inputs over the training images, \[inputs\]; their standard deviation
    /// follows.
    mean: Tensor,
    deviation: Tensor,
    /// The query of the attention pooling; only for an MLP.
    query: Option<Tensor>,
    layers: Vec<[Tensor; 2]>,
}

impl Network {
    fn new(store: &nn::VarStore, set: &FeatureDataset, training: &[usize], options: &HeadTraining) -> Self {
        let (hidden, labels) = (set.width(), i64::try_from(options.labels).unwrap_or(0));
        let [mean, deviation] = moments(set, training, options.kind, store.device());
        let inputs = mean.size()[0];
        let widths = match options.kind {
            HeadKind::Linear | HeadKind::LinearCls => vec![inputs, labels],
            HeadKind::Mlp => [vec![inputs], vec![hidden; MLP_LAYERS - 1], vec![labels]].concat(),
        };
        let last = widths.len() - 2;
        let layer = |(index, pair): (usize, &[i64])| {
            let (inputs, outputs) = (pair[0], pair[1]);
            // Initialised like `torch.nn.Linear`, except for the last layer, which begins at zero, so that
            // all labels are equally probable.
            let bound = if index == last { 0.0 } else { (inputs as f64).sqrt().recip() };
            let init = nn::Init::Uniform { lo: -bound, up: bound };
            let weight =
                store.root().set_group(DECAYING).var(&format!("weight{index}"), &[outputs, inputs], init);
            [weight, store.root().set_group(FREE).var(&format!("bias{index}"), &[outputs], init)]
        };
        let layers = widths.windows(2).enumerate().map(layer).collect();
        // At first every patch has the same weight.
        let query =
            (options.kind == HeadKind::Mlp).then(|| store.root().set_group(FREE).zeros("query", &[hidden]));
        Self { kind: options.kind, mean, deviation, query, layers }
    }

    /// Returns the head with these parameters, each passed through `part`. The first layer is trained on
    /// standardised features, and is converted here to take them unstandardised.
    fn head(&self, part: fn(&Tensor) -> Tensor) -> Head {
        let layer = |(index, [weight, bias]): (usize, &[Tensor; 2])| {
            if index > 0 {
                return Linear::from_tensors(part(weight), Some(part(bias)));
            }
            let weight = weight / &self.deviation;
            let bias = bias - weight.matmul(&self.mean);
            Linear::from_tensors(weight, Some(bias))
        };
        let mut layers: Vec<Linear> = self.layers.iter().enumerate().map(layer).collect();
        match (&self.query, self.kind) {
            (Some(query), _) => Head::AttentionMlp { query: part(query), layers },
            (None, HeadKind::LinearCls) => Head::Cls(layers.swap_remove(0)),
            (None, _) => Head::ClsAndMean(layers.swap_remove(0)),
        }
    }
}

/// Returns the mean and the standard deviation, \[inputs\] each, of the first layer's inputs over these
/// images. The pooling is taken in its initial state, which is the mean.
fn moments(set: &FeatureDataset, images: &[usize], kind: HeadKind, device: Device) -> [Tensor; 2] {
    let inputs = |batch: &[usize]| {
        let (Features { cls, patches }, _) = set.batch(&positions(batch), device);
        match kind {
            HeadKind::LinearCls => cls,
            _ => Tensor::cat(&[cls, patches.mean_dim([1].as_slice(), false, None::<Kind>)], -1),
        }
    };
    let all = Tensor::cat(&images.chunks(JUDGED_BATCH).map(inputs).collect::<Vec<_>>(), 0);
    let deviation = all.std_dim([0].as_slice(), false, false) + DEVIATION_MIN;
    [all.mean_dim([0].as_slice(), false, None::<Kind>), deviation]
}

/// Returns the weight of each label, n / (labels · images of the label), whose mean over images is 1, or
/// `None` where all weigh the same.
fn class_weights(
    set: &FeatureDataset,
    training: &[usize],
    options: &HeadTraining,
    device: Device,
) -> Option<Tensor> {
    if !options.balanced {
        return None;
    }
    let mut counts = vec![0_usize; options.labels];
    for &image in training {
        if let Some(count) = counts.get_mut(set.classes()[image]) {
            *count += 1;
        }
    }
    let weight = |count: usize| training.len() as f32 / (options.labels * count.max(1)) as f32;
    let weights: Vec<f32> = counts.into_iter().map(weight).collect();
    Some(Tensor::from_slice(&weights).to_device(device))
}

fn shuffled(images: &[usize]) -> Tensor {
    let order = Tensor::randperm(i64::try_from(images.len()).unwrap_or(0), (Kind::Int64, Device::Cpu));
    positions(images).index_select(0, &order)
}

/// Returns the mean loss, with each image weighted by its label.
fn loss_on(
    head: &Head,
    set: &FeatureDataset,
    images: &[usize],
    weights: Option<&Tensor>,
    device: Device,
) -> f64 {
    tch::no_grad(|| {
        let (mut loss, mut weight) = (0.0, 0.0);
        for batch in images.chunks(JUDGED_BATCH) {
            let (features, labels) = set.batch(&positions(batch), device);
            let logits = head.forward(&features);
            loss += logits.cross_entropy_loss(&labels, weights, Reduction::Sum, -100, 0.0).double_value(&[]);
            weight += weights.map_or(batch.len() as f64, |weights| {
                weights.index_select(0, &labels).sum(Kind::Double).double_value(&[])
            });
        }
        loss / weight
    })
}
