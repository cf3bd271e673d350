//! `concord head`: trains heads on frozen backbones, and writes them into snapshots and the configuration.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand, ValueEnum};
use concord_actors::{Digest, feature_digest};
use concord_models::presets::random_name;
use concord_models::{
    Capability, DEVICES, FeatureDataset, HeadKind, HeadTraining, Model, ModelOptions, TrainedHead,
    architectures_with, cache_folder, check_head_folder, free_host_memory, is_device_name, load_model,
    set_cpu_threads, snapshot_digest, train_head,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::dataset_args::{DatasetArgs, bytes_of};
use super::fit::positive;
use super::output::progress_bar;
use super::{EXIT_UNUSABLE, contained, print_line, warn};
use crate::config::{Ensemble, needs_heads};
use crate::fit::{TaskChange, apply_change, set_head, unified_diff, write_with_backup};
use crate::head::{
    ExtractedFeatures, Extraction, FeatureStore, Preparation, Split, Validation, describe, facts, print,
    split,
};

/// The number of distinct faults that are printed.
const PRINTED_FAULTS_MAX: usize = 5;
/// The number of copies of the features in memory while they are made into a tensor.
const COPIES: u64 = 2;

/// Train heads on frozen backbones.
#[derive(Debug, Args)]
pub struct HeadArgs {
    #[command(subcommand)]
    command: HeadCommand,
}

#[derive(Debug, Subcommand)]
enum HeadCommand {
    Train(Box<TrainArgs>),
}

/// Train a head for a task on labeled images, and write it into the folder of the model's snapshot.
///
/// The backbone is frozen and runs once for each image; its features are stored on disk. One group in five of
/// each label is held out for validation, which decides when to stop. The head is written to a new file,
/// head.TASK.vN.safetensors, whose metadata has the digest of the images and the validation metrics.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if a head was written, 1 if one was written but some images had to be left out,\n\
    2 if none was written."
)]
struct TrainArgs {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// The model whose features the head is trained on, as ensemble.toml names it
    #[arg(long, short, value_name = "NAME")]
    model: String,
    /// The kind of head
    #[arg(long, value_enum, default_value_t = Kind::Linear)]
    kind: Kind,
    /// The largest number of passes over the images
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    epochs: usize,
    /// Stop after this many epochs without a lower validation loss
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    patience: usize,
    /// The learning rate of the optimizer [default: 0.005 for linear heads, 0.002 for mlp]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// The weight decay of the optimizer (decoupled: times the learning rate at each step)
    #[arg(long, value_name = "RATE", default_value_t = 0.1, value_parser = not_negative)]
    weight_decay: f64,
    /// The dropout rate of hidden units, for mlp [default: 0.3]
    #[arg(long, value_name = "SHARE", value_parser = dropout)]
    dropout: Option<f64>,
    /// The number of images in a training step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    batch: usize,
    /// Whether rare labels weigh as much as frequent ones; probabilities are then those of a world in which
    /// all labels are equally frequent, until a temperature and thresholds are fitted
    #[arg(long, value_enum, default_value_t = ClassWeight::None)]
    class_weight: ClassWeight,
    /// The seed of the initial weights, the order of images, dropout, and the validation split
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The device to run the backbone and train the head on, instead of the one in ensemble.toml
    #[arg(long)]
    device: Option<String>,
    /// The folder that features are stored in [default: features in Concord's cache folder]
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// The images on which the result will be reported, in any form that --data takes: training on one of
    /// them is an error
    #[arg(long, value_name = "PATH")]
    holdout: Option<PathBuf>,
    /// Write the head and its temperature into ensemble.toml and keep a backup of it; a running server
    /// reloads the file
    #[arg(long)]
    apply: bool,
}

/// A kind of head, as the command line names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// One layer on the CLS token and the mean of the patch tokens
    Linear,
    /// One layer on the CLS token
    LinearCls,
    /// Four layers on the CLS token and the patch tokens pooled by attention
    Mlp,
}

impl From<Kind> for HeadKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Linear => Self::Linear,
            Kind::LinearCls => Self::LinearCls,
            Kind::Mlp => Self::Mlp,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClassWeight {
    /// Every image weighs the same
    None,
    /// Every label weighs the same
    Balanced,
}

fn not_negative(argument: &str) -> Result<f64, String> {
    let value = argument.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0);
    value.ok_or("must be 0 or more".to_owned())
}

fn dropout(argument: &str) -> Result<f64, String> {
    let rate = argument.parse().ok().filter(|rate: &f64| (0.0..=0.9).contains(rate));
    rate.ok_or("must be from 0 to 0.9".to_owned())
}

/// Runs the command: trains, reports, and writes.
pub fn run(args: &HeadArgs) -> ExitCode {
    let HeadCommand::Train(args) = &args.command;
    train(args).unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn train(args: &TrainArgs) -> Result<ExitCode, String> {
    let training = args.training()?;
    let ensemble = args.dataset.ensemble.read()?;
    let task = args.dataset.task(&ensemble)?;
    let options = args.model_options(&ensemble)?;
    args.check_dropout(&options, &training)?;
    let folder = ensemble.folder().join(&options.snapshot);
    // Checked before anything that takes long.
    check_head_folder(&folder)
        .map_err(|error| format!("no head can be written beside the snapshot: {error}"))?;
    if let Some(holdout) = &args.holdout {
        args.dataset.refuse_shared(&ensemble, holdout)?;
    }
    let labels = ensemble.tasks()[&task].labels();
    let training = HeadTraining { labels: labels.len(), ..training };
    set_cpu_threads(ensemble.server().cpu_threads);
    let model = contained(|| load_model(&options, ensemble.folder()))?;
    let snapshot =
        snapshot_digest(ensemble.folder(), &options.snapshot).map_err(|error| error.to_string())?;
    let mut extracted = args.extracted(&ensemble, labels, &*model, (&options, &snapshot))?;
    let split = split(&extracted.groups, &extracted.labels, labels, args.seed)?;
    print_line(&describe(&extracted, &split, labels));

    let shape = source_of(&*model, &args.model)?.feature_shape(training.kind.features());
    let values = std::mem::take(&mut extracted.values);
    let set =
        FeatureDataset::new(&values, shape, extracted.labels.clone()).map_err(|error| error.to_string())?;
    drop(values);
    let head = train_with_progress(&set, &split, &training, &*model)?;
    // Computed as the model will compute them when it serves the head.
    let scores = contained(|| head.scores(&set, &split.validation, options.mc_dropout_passes()))?;
    let validation_result = Validation::of(&scores, &extracted, &split, labels.len(), args.seed)?;
    print_line(&print(&validation_result, &head, &split));

    let mut notes = facts(&validation_result, &extracted, &split, &Digest::from(snapshot).to_string());
    // The metrics and the temperature hold for this number of passes.
    notes.insert("mc_dropout_passes".to_owned(), options.mc_dropout_passes().to_string());
    let file = head.write(&folder, &task, labels, notes).map_err(|error| error.to_string())?;
    print_line(&format!("Written: {}", folder.join(&file).display()));
    args.apply_head(&task, &file, validation_result.temperature)?;
    Ok(if extracted.left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl TrainArgs {
    /// Returns the training options of the arguments; the number of labels is not known yet, and 0.
    fn training(&self) -> Result<HeadTraining, String> {
        let kind = HeadKind::from(self.kind);
        let is_mlp = kind == HeadKind::Mlp;
        if !is_mlp && self.dropout.is_some_and(|rate| rate > 0.0) {
            return Err("--dropout is for heads with hidden layers: train one with --kind mlp".to_owned());
        }
        Ok(HeadTraining {
            kind,
            labels: 0,
            epochs: self.epochs,
            patience: self.patience,
            learning_rate: self.learning_rate.unwrap_or(if is_mlp { 2e-3 } else { 5e-3 }),
            weight_decay: self.weight_decay,
            dropout: self.dropout.unwrap_or(if is_mlp { 0.3 } else { 0.0 }),
            batch: self.batch,
            balanced: self.class_weight == ClassWeight::Balanced,
            seed: self.seed,
        })
    }

    /// Checks that the model can serve the head, if it is to be applied.
    fn check_dropout(&self, options: &ModelOptions, training: &HeadTraining) -> Result<(), String> {
        let passes = options.mc_dropout_passes();
        if self.apply && passes > 0 && training.dropout == 0.0 {
            return Err(format!(
                "{} asks its heads with dropout (mc_dropout_passes = {passes}), and this one would have none: train it \
                 with --kind mlp, or set mc_dropout_passes = 0",
                self.model
            ));
        }
        Ok(())
    }

    /// Returns the options of the model, on the requested device.
    fn model_options(&self, ensemble: &Ensemble) -> Result<ModelOptions, String> {
        let name = &self.model;
        let Some(options) = ensemble.models().get(name) else {
            let known: Vec<&str> = ensemble.models().keys().map(String::as_str).collect();
            return Err(format!("no model {name:?} runs here: there is {}", known.join(", ")));
        };
        if !needs_heads(options) {
            return Err(no_features(name));
        }
        if random_name(&options.snapshot).is_some() {
            return Err(format!("the weights of {name} are random: a head on them would mean nothing"));
        }
        let device = self.device.as_ref().unwrap_or(&options.device);
        if !is_device_name(device) {
            return Err(format!("--device {device:?}: must be {DEVICES}"));
        }
        // Training replays no CUDA graph, and after a warm-up that captured graphs libtorch refuses to draw
        // random numbers on the GPU, which training needs ("Offset increment outside graph capture", 2.11.0
        // on an H200).
        Ok(ModelOptions { device: device.clone(), graphs: false, ..options.clone() })
    }

    /// Returns the features of the images: those stored on disk, and the others by running the backbone.
    fn extracted(
        &self,
        ensemble: &Ensemble,
        labels: &[String],
        model: &dyn Model,
        (options, snapshot): (&ModelOptions, &[u8; 32]),
    ) -> Result<ExtractedFeatures, String> {
        let kind = HeadKind::from(self.kind).features();
        let source = source_of(model, &self.model)?;
        let data = self.dataset.read(labels)?;
        let (groups, of_each): (Vec<usize>, Vec<usize>) =
            data.examples.iter().map(|example| (example.group, example.label)).unzip();
        // A data set that cannot be split need not be run through the backbone.
        split(&groups, &of_each, labels, self.seed)?;
        let [rows, width] = source.feature_shape(kind);
        check_memory(data.examples.len(), rows * width)?;
        let folder = self.feature_folder()?;
        let mut store = FeatureStore::open(&folder, &feature_digest(options, snapshot, kind), rows * width)?;
        store.check_room(data.examples.len())?;
        let server = ensemble.server();
        let extraction = Extraction {
            source,
            kind,
            preparation: Preparation {
                preprocessor: model.info().preprocessor.clone().for_device(model.info().placement.device),
                limits: server.image_limits(),
                decodes_fast: options.decodes_fast(),
            },
            batch: options.max_batch,
            read: |example: &_| bytes_of(example, server.max_body_bytes),
        };
        let progress = progress_bar(data.examples.len());
        let mut on_progress = |images| progress.inc(images);
        let extracted = contained(|| Ok(extraction.run(&data.examples, &mut store, &mut on_progress)));
        progress.finish_and_clear();
        let extracted = extracted??;
        warn_about_faults(&extracted, data.examples.len());
        Ok(extracted)
    }

    fn feature_folder(&self) -> Result<PathBuf, String> {
        let in_cache = || Some(cache_folder()?.join("features"));
        let folder = self.features.clone().or_else(in_cache);
        folder.ok_or_else(|| {
            "there is no home folder to store features in: name one with --features".to_owned()
        })
    }

    /// Writes the head and its temperature into `ensemble.toml`, or prints what to write there.
    fn apply_head(&self, task: &str, file: &Path, temperature: f64) -> Result<(), String> {
        let (path, model) = (&self.dataset.ensemble.ensemble, &self.model);
        let file = file.display().to_string();
        let before = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let calibration = TaskChange {
            temperatures: BTreeMap::from([(model.clone(), temperature)]),
            ..TaskChange::default()
        };
        let after =
            set_head(&before, model, task, &file).and_then(|text| apply_change(&text, task, &calibration))?;
        if !self.apply {
            print_line(&format!(
                "To serve it, put this into {} (or use --apply):\n  [models.{model}]   heads.{task} = {file:?}\n  \
                 [tasks.{task}]   calibration.{model} = {temperature:.4}",
                path.display()
            ));
            return Ok(());
        }
        print_line(&unified_diff(&before, &after, &path.display().to_string()));
        let backup = write_with_backup(path, &before, &after)?;
        print_line(&format!("Written; the old file is {}.", backup.display()));
        Ok(())
    }
}

fn no_features(model: &str) -> String {
    format!(
        "{model} has no features that a head could be trained on: only models of architecture {} have",
        architectures_with(Capability::Heads).join(" or ")
    )
}

fn source_of<'a>(model: &'a dyn Model, name: &str) -> Result<&'a dyn concord_models::FeatureSource, String> {
    model.feature_source().ok_or_else(|| no_features(name))
}

/// Checks that there is memory for all features at once.
fn check_memory(images: usize, numbers: usize) -> Result<(), String> {
    let bytes = COPIES * (images * numbers * size_of::<f32>()) as u64;
    match free_host_memory() {
        Some(free) if bytes > free => Err(format!(
            "the features of {images} images take {} MiB of memory, and {} MiB are free: take fewer images, or train a \
             linear head, which needs fewer features of each",
            bytes >> 20,
            free >> 20
        )),
        _ => Ok(()),
    }
}

/// Warns about the images that are not trained on.
fn warn_about_faults(extracted: &ExtractedFeatures, images: usize) {
    for fault in extracted.faults.iter().take(PRINTED_FAULTS_MAX) {
        warn(fault);
    }
    if extracted.left_out > 0 {
        warn(&format!("{} of {images} images are left out: they could not be read", extracted.left_out));
    }
    if extracted.repeated > 0 {
        warn(&format!("{} images are duplicates and are counted once", extracted.repeated));
    }
}

/// Trains the head, with a progress bar on a terminal.
fn train_with_progress(
    set: &FeatureDataset,
    split: &Split,
    training: &HeadTraining,
    model: &dyn Model,
) -> Result<TrainedHead, String> {
    let progress = epoch_bar(training.epochs);
    let parts = [split.training.as_slice(), &split.validation];
    let started = Instant::now();
    let mut best = f64::INFINITY;
    let trained = contained(|| {
        train_head(set, parts, training, model.info().placement, |epoch| {
            best = best.min(epoch.validation_loss);
            progress.set_message(format!("loss {:.4}, best {best:.4}", epoch.validation_loss));
            progress.inc(1);
        })
    });
    progress.finish_and_clear();
    let head = trained?;
    let seconds = started.elapsed().as_secs_f64();
    print_line(&format!("Trained in {seconds:.1} s."));
    Ok(head)
}

fn epoch_bar(epochs: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} epoch {pos} of at most {len}, validation: {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(epochs as u64).with_style(style)
}
