//! Votes of the shipped ensemble's models on photographs that nobody trained on: `exact` against `fast`.

use std::io::Read;
use std::path::{Path, PathBuf};

use concord::config::Ensemble;
use concord_actors::task_labels;
use concord_models::{Model, Pixels, RgbImage, Scale, TaskId, decode, decode_at, jpeg_size, load_model};

use crate::picture::{enlarged, twelve_megapixels};
use crate::root;

/// The photographs are as small as the models' input: as they are, nothing could be saved.
const TIMES: u32 = 4;
/// Photographs enlarged to twelve megapixels are so many times fewer: each takes seconds.
const FEWER_LARGE: usize = 8;

/// Who is asked.
struct Asked {
    task: String,
    name: String,
    model: Box<dyn Model>,
}

/// What has become of the votes.
#[derive(Default)]
struct Effect {
    pictures: usize,
    /// Decoded at less than the whole; the others' votes are the same.
    scaled: usize,
    other_label: usize,
    changes: Vec<f64>,
}

/// Prints a table for the examples, and for photographs enlarged.
pub(crate) fn report(every: usize) {
    let Some(archive) = archive() else { return };
    let asked = asked();
    println!(
        "{:14} {:14} {:12} {:>8} {:>7} {:>12} {:>9} {:>9}",
        "pictures", "task", "model", "pictures", "scaled", "other label", "mean |dp|", "max |dp|"
    );
    let decoded = |bytes: &Vec<u8>| decode(bytes, u64::MAX).expect("it is a picture");
    let four_times = |photograph: RgbImage| {
        enlarged(&photograph, [photograph.width() * TIMES, photograph.height() * TIMES])
    };
    let photographs_of = |every| photographs(&archive, every);
    measure("examples", &examples(), &asked);
    let larger: Vec<_> = photographs_of(every).iter().map(decoded).map(four_times).collect();
    measure("4 times", &larger, &asked);
    let huge = photographs_of(every * FEWER_LARGE);
    let huge: Vec<_> = huge.iter().map(decoded).map(|photograph| twelve_megapixels(&photograph)).collect();
    measure("12 megapixels", &huge, &asked);
}

/// The JPEGs that the repository has.
fn examples() -> Vec<Vec<u8>> {
    let folder = root().join("assets");
    let entries = std::fs::read_dir(folder).expect("the repository has its assets");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("it is readable").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "jpg"));
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("it is readable")).collect()
}

fn measure(what: &str, pictures: &[Vec<u8>], asked: &[Asked]) {
    for one in asked {
        let mut effect = Effect::default();
        for picture in pictures {
            effect.add(one, picture);
        }
        let count = effect.pictures as f64;
        let mean = effect.changes.iter().fold(0.0, |sum, change| sum + change) / count;
        let most = effect.changes.iter().copied().fold(0.0, f64::max);
        println!(
            "{what:14} {:14} {:12} {:8} {:7} {:12} {mean:9.4} {most:9.4}",
            one.task, one.name, effect.pictures, effect.scaled, effect.other_label
        );
    }
}

impl Effect {
    fn add(&mut self, asked: &Asked, bytes: &[u8]) {
        self.pictures += 1;
        let size = jpeg_size(bytes, u64::MAX).expect("it is a picture").expect("it is a JPEG");
        let scale = asked.model.loaded().preprocessor.scale(size);
        if scale == Scale::WHOLE {
            return;
        }
        self.scaled += 1;
        let (exact, fast) = (asked.vote(bytes, Scale::WHOLE), asked.vote(bytes, scale));
        let best = |vote: &[f64]| (0..vote.len()).max_by(|&a, &b| vote[a].total_cmp(&vote[b])).unwrap_or(0);
        self.other_label += usize::from(best(&exact) != best(&fast));
        self.changes.push((exact[best(&exact)] - fast[best(&exact)]).abs());
    }
}

impl Asked {
    /// The probability of each label, uncalibrated.
    fn vote(&self, bytes: &[u8], scale: Scale) -> Vec<f64> {
        let picture = decode_at(bytes, u64::MAX, scale).expect("it is decoded");
        let pixels: Pixels =
            self.model.loaded().preprocessor.apply_picture(&picture).expect("it is made ready");
        let scores = self.model.classify(TaskId::default(), &[&pixels]).expect("the model answers");
        let logits = scores[0].logits.iter().map(|&logit| f64::from(logit));
        let highest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = logits.map(|logit| (logit - highest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum).collect()
    }
}

/// Each model of each task of the shipped ensemble.
fn asked() -> Vec<Asked> {
    let file = root().join("ensemble.toml");
    let ensemble = Ensemble::load(&file).expect("the shipped ensemble is valid");
    let mut asked = Vec::new();
    for (task, policy) in ensemble.tasks() {
        for member in policy.members() {
            let Some(options) = ensemble.models().get(&**member.model()) else { continue };
            let mut model = load_model(options, file.parent().expect("a folder")).expect("the model loads");
            let labels = task_labels(task, policy, options.heads.get(task).cloned());
            model.prepare(TaskId::default(), &labels).expect("the model takes the task");
            asked.push(Asked { task: task.clone(), name: member.model().to_string(), model });
        }
    }
    asked
}

/// The test archive, or a message that says why it is not measured.
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

fn photographs(archive: &Path, every: usize) -> Vec<Vec<u8>> {
    let file = std::fs::File::open(archive).expect("the archive opens");
    let mut opened = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let entries = opened.entries().expect("it is an archive").map(|entry| entry.expect("it is whole"));
    let files = entries.filter(|entry| entry.header().entry_type().is_file());
    let read = |mut entry: tar::Entry<'_, _>| {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("it is whole");
        bytes
    };
    files.step_by(every.max(1)).map(read).collect()
}
