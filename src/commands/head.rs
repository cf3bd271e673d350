//! `concord head`: trains heads on frozen backbones, and says how they are used.

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
    DEVICES, FeatureSet, HeadKind, HeadTraining, Model, ModelOptions, TrainedHead, cache_folder,
    check_head_folder, free_host_memory, is_device_name, load_model, set_cpu_threads, snapshot_digest,
    train_head,
};
use indicatif::{ProgressBar, ProgressStyle};

use super::fit::positive;
use super::output::progress_bar;
use super::pictures::{PictureArgs, bytes_of};
use super::{EXIT_UNUSABLE, contained, print_line, warn};
use crate::config::{Ensemble, needs_heads};
use crate::fit::{TaskChange, difference, edited, with_head, write_with_backup};
use crate::head::{
    Division, Extraction, FeatureStore, Judgement, Labelled, Preparation, describe, divide, facts, print,
};

/// So many different faults are told.
const FAULTS_TOLD_MAX: usize = 5;
/// While features become a tensor they are in memory twice.
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

/// Train a head for a task on labelled pictures, and write it beside the model's snapshot.
///
/// The backbone runs once for each picture and stays as it is; its features are kept on disk. One group in five of each
/// label is not trained on, and says when to stop. The head is a new file, head.TASK.vN.safetensors, with the pictures'
/// digest and what the validation part says in its metadata.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 when a head was written, 1 when one was and some pictures had to be left out,\n\
    2 when none was written."
)]
struct TrainArgs {
    #[command(flatten)]
    pictures: PictureArgs,
    /// The model whose features it is trained on, as ensemble.toml names it
    #[arg(long, short, value_name = "NAME")]
    model: String,
    /// What the head is
    #[arg(long, value_enum, default_value_t = Kind::Linear)]
    kind: Kind,
    /// Passes over the pictures, at most
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    epochs: usize,
    /// End after so many epochs that were no better on the validation part
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    patience: usize,
    /// The step size of the optimiser [default: 0.005 for linear heads, 0.002 for mlp]
    #[arg(long, value_name = "RATE", value_parser = positive)]
    learning_rate: Option<f64>,
    /// By how much weights shrink at each step, times the step size
    #[arg(long, value_name = "RATE", default_value_t = 0.1, value_parser = not_negative)]
    weight_decay: f64,
    /// The share of hidden units that are left out at each step, for mlp [default: 0.3]
    #[arg(long, value_name = "SHARE", value_parser = dropout)]
    dropout: Option<f64>,
    /// Pictures in a step
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    batch: usize,
    /// Whether rare labels count as much as frequent ones. Probabilities are then those of a world in which labels are
    /// equally frequent, until a temperature and thresholds are fitted
    #[arg(long, value_enum, default_value_t = ClassWeight::None)]
    class_weight: ClassWeight,
    /// Of initial weights, the order of pictures, dropout and the validation part
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the backbone runs and the head is trained, instead of where ensemble.toml says
    #[arg(long)]
    device: Option<String>,
    /// Where features are kept [default: features in Concord's cache folder]
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// Pictures on which the result will be reported, in the form of --data: none of them may be trained on
    #[arg(long, value_name = "PATH")]
    evaluation: Option<PathBuf>,
    /// Write the head and its temperature into ensemble.toml, of which a backup is kept; a running server follows
    #[arg(long = "use")]
    use_it: bool,
}

/// As the command line calls it.
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
    /// Every picture counts the same
    None,
    /// Every label counts the same
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

/// Trains, tells, and writes.
pub fn run(args: &HeadArgs) -> ExitCode {
    let HeadCommand::Train(args) = &args.command;
    train(args).unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn train(args: &TrainArgs) -> Result<ExitCode, String> {
    let training = args.training()?;
    let ensemble = args.pictures.ensemble.read()?;
    let task = args.pictures.task(&ensemble)?;
    let options = args.model_options(&ensemble)?;
    args.check_dropout(&options, &training)?;
    let folder = ensemble.folder().join(&options.snapshot);
    // Before anything takes its time.
    check_head_folder(&folder)
        .map_err(|error| format!("no head can be written beside the snapshot: {error}"))?;
    if let Some(evaluation) = &args.evaluation {
        args.pictures.refuse_shared(&ensemble, evaluation)?;
    }
    let labels = ensemble.tasks()[&task].labels();
    let training = HeadTraining { labels: labels.len(), ..training };
    set_cpu_threads(ensemble.server().cpu_threads);
    let model = contained(|| load_model(&options, ensemble.folder()))?;
    let snapshot =
        snapshot_digest(ensemble.folder(), &options.snapshot).map_err(|error| error.to_string())?;
    let mut labelled = args.labelled(&ensemble, labels, &*model, (&options, &snapshot))?;
    let division = divide(&labelled.groups, &labelled.labels, labels, args.seed)?;
    print_line(&describe(&labelled, &division, labels));

    let shape = source_of(&*model, &args.model)?.feature_shape(training.kind.features());
    let values = std::mem::take(&mut labelled.values);
    let set = FeatureSet::new(&values, shape, labelled.labels.clone()).map_err(|error| error.to_string())?;
    drop(values);
    let head = trained(&set, &division, &training, &*model)?;
    // As the model will ask it.
    let scores = contained(|| head.scores(&set, &division.validation, options.mc_dropout_passes))?;
    let judgement = Judgement::of(&scores, &labelled, &division, labels.len(), args.seed)?;
    print_line(&print(&judgement, &head, &division));

    let mut notes = facts(&judgement, &labelled, &division, &Digest::from(snapshot).to_string());
    // What the figures and the temperature are of.
    notes.insert("mc_dropout_passes".to_owned(), options.mc_dropout_passes.to_string());
    let file = head.write(&folder, &task, labels, notes).map_err(|error| error.to_string())?;
    print_line(&format!("Written: {}", folder.join(&file).display()));
    args.put_to_use(&task, &file, judgement.temperature)?;
    Ok(if labelled.left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl TrainArgs {
    /// As asked for, for a number of labels that is not known yet.
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

    /// A head that is put to use must be one that the model can ask.
    fn check_dropout(&self, options: &ModelOptions, training: &HeadTraining) -> Result<(), String> {
        let passes = options.mc_dropout_passes;
        if self.use_it && passes > 0 && training.dropout == 0.0 {
            return Err(format!(
                "{} asks its heads with dropout (mc_dropout_passes = {passes}), and this one would have none: train it \
                 with --kind mlp, or set mc_dropout_passes = 0",
                self.model
            ));
        }
        Ok(())
    }

    /// The model's, on the device that is asked for.
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
        // Training replays none; and after a warm-up that recorded graphs libtorch refused to draw random numbers on the GPU
        // ("Offset increment outside graph capture", 2.11.0 on an H200), which training needs.
        Ok(ModelOptions { device: device.clone(), graphs: false, ..options.clone() })
    }

    /// The pictures with their features.
    fn labelled(
        &self,
        ensemble: &Ensemble,
        labels: &[String],
        model: &dyn Model,
        (options, snapshot): (&ModelOptions, &[u8; 32]),
    ) -> Result<Labelled, String> {
        let kind = HeadKind::from(self.kind).features();
        let source = source_of(model, &self.model)?;
        let data = self.pictures.read(labels)?;
        let (groups, of_each): (Vec<usize>, Vec<usize>) =
            data.examples.iter().map(|example| (example.group, example.label)).unzip();
        // What cannot be divided need not be looked at.
        divide(&groups, &of_each, labels, self.seed)?;
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
                preprocessor: model.loaded().preprocessor.clone().for_device(model.loaded().placement.device),
                max_pixels: server.max_pixels,
                decodes_fast: options.decodes_fast(),
            },
            batch: options.max_batch,
            read: |example: &_| bytes_of(example, server.max_body_bytes),
        };
        let progress = progress_bar(data.examples.len());
        let mut on_progress = |pictures| progress.inc(pictures);
        let extracted = contained(|| Ok(extraction.run(&data.examples, &mut store, &mut on_progress)));
        progress.finish_and_clear();
        let labelled = extracted??;
        tell_faults(&labelled, data.examples.len());
        Ok(labelled)
    }

    fn feature_folder(&self) -> Result<PathBuf, String> {
        let in_cache = || Some(cache_folder()?.join("features"));
        let folder = self.features.clone().or_else(in_cache);
        folder
            .ok_or_else(|| "there is no home folder to keep features in: name one with --features".to_owned())
    }

    /// Writes into `ensemble.toml` that the head serves, or says what to write there.
    fn put_to_use(&self, task: &str, file: &Path, temperature: f64) -> Result<(), String> {
        let (path, model) = (&self.pictures.ensemble.ensemble, &self.model);
        let file = file.display().to_string();
        let before = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let calibration = TaskChange {
            temperatures: BTreeMap::from([(model.clone(), temperature)]),
            ..TaskChange::default()
        };
        let after =
            with_head(&before, model, task, &file).and_then(|text| edited(&text, task, &calibration))?;
        if !self.use_it {
            print_line(&format!(
                "It serves once {} says so (--use writes that):\n  [models.{model}]   heads.{task} = {file:?}\n  \
                 [tasks.{task}]   calibration.{model} = {temperature:.4}",
                path.display()
            ));
            return Ok(());
        }
        print_line(&difference(&before, &after, &path.display().to_string()));
        let backup = write_with_backup(path, &before, &after)?;
        print_line(&format!("Written; the old file is {}.", backup.display()));
        Ok(())
    }
}

fn no_features(model: &str) -> String {
    format!(
        "{model} has no features that a head could be trained on: only models of architecture dinov3 have"
    )
}

fn source_of<'a>(model: &'a dyn Model, name: &str) -> Result<&'a dyn concord_models::FeatureSource, String> {
    model.feature_source().ok_or_else(|| no_features(name))
}

/// Whether there is memory for all features at once.
fn check_memory(pictures: usize, numbers: usize) -> Result<(), String> {
    let bytes = COPIES * (pictures * numbers * size_of::<f32>()) as u64;
    match free_host_memory() {
        Some(free) if bytes > free => Err(format!(
            "the features of {pictures} pictures take {} MiB of memory, and {} are free: take fewer pictures, or train a \
             linear head, which needs less of each",
            bytes >> 20,
            free >> 20
        )),
        _ => Ok(()),
    }
}

fn tell_faults(labelled: &Labelled, pictures: usize) {
    for fault in labelled.faults.iter().take(FAULTS_TOLD_MAX) {
        warn(fault);
    }
    if labelled.left_out > 0 {
        warn(&format!("{} of {pictures} pictures are left out, which could not be read", labelled.left_out));
    }
    if labelled.repeated > 0 {
        warn(&format!("{} pictures are there more than once, and count once", labelled.repeated));
    }
}

/// Shows at a terminal how far it is.
fn trained(
    set: &FeatureSet,
    division: &Division,
    training: &HeadTraining,
    model: &dyn Model,
) -> Result<TrainedHead, String> {
    let progress = epoch_bar(training.epochs);
    let parts = [division.training.as_slice(), &division.validation];
    let started = Instant::now();
    let mut best = f64::INFINITY;
    let trained = contained(|| {
        train_head(set, parts, training, model.loaded().placement, |epoch| {
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
    let template = "{bar:30} epoch {pos} of at most {len}, on the validation part: {msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(epochs as u64).with_style(style)
}
