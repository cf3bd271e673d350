//! Compares votes with `exact` and `fast` decoding, of the shipped ensemble's models on photographs outside
//! the training data.

use std::io::Read;
use std::path::{Path, PathBuf};

use concord::config::Ensemble;
use concord_actors::task_labels;
use concord_models::{
    ImageLimits, Model, Pixels, PreprocessLimits, RgbImage, Scale, TaskId, decode, decode_at, jpeg_size,
    load_model,
};

use crate::photographs::{enlarged, twelve_megapixels};
use crate::root;

/// The factor of enlargement. The photographs are as small as the models' input, so that nothing could be
/// saved without it.
const ENLARGEMENT: u32 = 4;
/// The factor of the stride for photographs of twelve megapixels, each of which takes seconds.
const LARGE_STRIDE: usize = 8;

/// A model that is prepared for a task.
struct TaskModel {
    task: String,
    name: String,
    model: Box<dyn Model>,
}

/// The differences between the votes.
#[derive(Default)]
struct Effect {
    images: usize,
    /// Images that are decoded at a smaller scale; the votes on the others are the same.
    scaled: usize,
    other_label: usize,
    changes: Vec<f64>,
}

/// Prints a table for the examples, and for enlarged photographs.
pub(crate) fn report(stride: usize) {
    let Some(archive) = archive() else { return };
    let models = task_models();
    println!(
        "{:14} {:14} {:12} {:>8} {:>7} {:>12} {:>9} {:>9}",
        "images", "task", "model", "images", "scaled", "other label", "mean |dp|", "max |dp|"
    );
    let decoded = |bytes: &Vec<u8>| decode(bytes, ImageLimits::default()).expect("it is an image");
    let four_times = |photograph: RgbImage| {
        enlarged(&photograph, [photograph.width() * ENLARGEMENT, photograph.height() * ENLARGEMENT])
    };
    let photographs_of = |stride| photographs(&archive, stride);
    measure("examples", &examples(), &models);
    let larger: Vec<_> = photographs_of(stride).iter().map(decoded).map(four_times).collect();
    measure("4 times", &larger, &models);
    let huge = photographs_of(stride * LARGE_STRIDE);
    let huge: Vec<_> = huge.iter().map(decoded).map(|photograph| twelve_megapixels(&photograph)).collect();
    measure("12 megapixels", &huge, &models);
}

/// Returns the JPEGs of the repository.
fn examples() -> Vec<Vec<u8>> {
    let folder = root().join("assets");
    let entries = std::fs::read_dir(folder).expect("the repository has its assets");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it is readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "jpg"));
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("it is readable")).collect()
}

fn measure(what: &str, images: &[Vec<u8>], models: &[TaskModel]) {
    for model in models {
        let mut effect = Effect::default();
        for image in images {
            effect.add(model, image);
        }
        let count = effect.images as f64;
        let mean = effect.changes.iter().fold(0.0, |sum, change| sum + change) / count;
        let most = effect.changes.iter().copied().fold(0.0, f64::max);
        println!(
            "{what:14} {:14} {:12} {:8} {:7} {:12} {mean:9.4} {most:9.4}",
            model.task, model.name, effect.images, effect.scaled, effect.other_label
        );
    }
}

impl Effect {
    fn add(&mut self, model: &TaskModel, bytes: &[u8]) {
        self.images += 1;
        let size = jpeg_size(bytes, ImageLimits::default()).expect("it is an image").expect("it is a JPEG");
        let scale = model.model.info().preprocessor.scale(size);
        if scale == Scale::WHOLE {
            return;
        }
        self.scaled += 1;
        let (exact, fast) = (model.vote(bytes, Scale::WHOLE), model.vote(bytes, scale));
        let best = |vote: &[f64]| (0..vote.len()).max_by(|&a, &b| vote[a].total_cmp(&vote[b])).unwrap_or(0);
        self.other_label += usize::from(best(&exact) != best(&fast));
        self.changes.push((exact[best(&exact)] - fast[best(&exact)]).abs());
    }
}

impl TaskModel {
    /// Returns the uncalibrated probability of each label.
    fn vote(&self, bytes: &[u8], scale: Scale) -> Vec<f64> {
        let image = decode_at(bytes, ImageLimits::default(), scale, &|| true).expect("it is decoded");
        let pixels: Pixels = self
            .model
            .info()
            .preprocessor
            .apply_decoded(&image, &PreprocessLimits::default())
            .expect("it is preprocessed");
        let scores = self.model.classify(TaskId::default(), &[&pixels]).expect("the model answers");
        let logits = scores[0].logits.iter().map(|&logit| f64::from(logit));
        let highest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.map(|logit| (logit - highest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }
}

/// Returns each model of each task of the shipped ensemble.
fn task_models() -> Vec<TaskModel> {
    let file = root().join("ensemble.toml");
    let ensemble = Ensemble::load(&file).expect("the shipped ensemble is valid");
    let mut models = Vec::new();
    for (task, policy) in ensemble.tasks() {
        for member in policy.members() {
            let Some(options) = ensemble.models().get(&**member.model()) else { continue };
            let mut model = load_model(options, file.parent().expect("a folder")).expect("the model loads");
            let labels = task_labels(task, policy, options.head(task));
            model.prepare(TaskId::default(), &labels).expect("the model takes the task");
            models.push(TaskModel { task: task.clone(), name: member.model().to_string(), model });
        }
    }
    models
}

/// Returns the test archive, or prints why it is skipped.
fn archive() -> Option<PathBuf> {
    let folder =
        std::env::var_os("CONCORD_DATA").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    let archive = folder.join("gtsrb_test.tar.gz");
    if !archive.exists() {
        eprintln!("votes skipped: no {}; set CONCORD_DATA", archive.display());
        return None;
    }
    Some(archive)
}

fn photographs(archive: &Path, stride: usize) -> Vec<Vec<u8>> {
    let file = std::fs::File::open(archive).expect("the archive opens");
    let mut opened = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let entries = opened.entries().expect("it is an archive").map(|entry| entry.expect("it is whole"));
    let files = entries.filter(|entry| entry.header().entry_type().is_file());
    let read = |mut entry: tar::Entry<'_, _>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("it is whole");
        bytes
    };
    files.step_by(stride.max(1)).map(read).collect()
}
