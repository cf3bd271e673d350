//! Stores votes on disk, so that a second evaluation of the same images asks no model.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use concord_actors::Digest;
use concord_policy::{Cost, ModelOutput};
use serde::{Deserialize, Serialize};

/// The largest file of votes that is read: some ten million votes.
const FILE_BYTES_MAX: u64 = 2 << 30;

/// The version of the format, which is part of the file's name: files of other versions are not read.
const VERSION: u32 = 2;

/// One model's vote about one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredVote {
    /// The output of the model: uncalibrated logits, and its evidence.
    pub(crate) output: ModelOutput,
    /// The time that it took.
    pub(crate) cost: Cost,
}

impl StoredVote {
    /// Returns the milliseconds of preprocessing and of the model, rounded to microseconds.
    pub(crate) fn milliseconds(&self) -> f64 {
        (self.cost.preprocess + self.cost.model).as_micros() as f64 / 1e3
    }
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    image: String,
    vote: StoredVote,
}

/// The stored votes of one model for one task: a file for each combination of the inputs that they depend on,
/// with a line per image.
#[derive(Debug)]
pub(crate) struct VoteStore {
    path: PathBuf,
    known: HashMap<String, StoredVote>,
    file: File,
}

impl VoteStore {
    /// Opens or creates the file in `folder` for votes on this many labels, whose inputs have the digest
    /// `digest`. A damaged line, such as the last one of a program that was killed, is ignored.
    ///
    /// # Errors
    /// When it cannot be read or written, or is too large.
    pub(crate) fn open(folder: &Path, digest: &Digest, labels: usize) -> Result<Self, String> {
        let path = folder.join(format!("{digest}.v{VERSION}.jsonl"));
        let with_context =
            |error: std::io::Error| format!("votes cannot be stored in {}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(with_context)?;
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(with_context)?;
        let bytes = file.metadata().map_err(with_context)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(format!(
                "{} has {bytes} bytes of votes, more than the limit: delete it",
                path.display()
            ));
        }
        let mut known = HashMap::new();
        let mut ends_whole = true;
        let mut reader = BufReader::new(&file);
        let mut text = Vec::new();
        while reader.read_until(b'\n', &mut text).map_err(with_context)? > 0 {
            ends_whole = text.ends_with(b"\n");
            let line = serde_json::from_slice::<Line>(&text).ok();
            if let Some(Line { image, vote }) = line.filter(|line| line.vote.output.logits(labels).is_ok()) {
                known.insert(image, vote);
            }
            text.clear();
        }
        let mut store = Self { path, known, file };
        if !ends_whole {
            store.write("\n")?;
        }
        Ok(store)
    }

    /// Returns the vote on the image with this digest; `None` if there is none.
    pub(crate) fn get(&self, image: &Digest) -> Option<&StoredVote> {
        self.known.get(&image.to_string())
    }

    /// Stores a vote on an image.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn put(&mut self, image: &Digest, vote: StoredVote) -> Result<(), String> {
        let line = Line { image: image.to_string(), vote };
        let text = serde_json::to_string(&line).map_err(|error| error.to_string())?;
        self.write(&format!("{text}\n"))?;
        self.known.insert(line.image, line.vote);
        Ok(())
    }

    /// Writes in a single call, so that a program that is killed leaves only whole lines, except possibly the
    /// last.
    fn write(&mut self, text: &str) -> Result<(), String> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| format!("votes cannot be stored in {}: {error}", self.path.display()))
    }
}

#[cfg(test)]
impl StoredVote {
    /// Returns a vote without evidence, of a model that took this long.
    pub(crate) fn of(logits: Vec<f32>, milliseconds: u64) -> Self {
        let model = std::time::Duration::from_millis(milliseconds);
        Self { output: logits.into(), cost: Cost { model, ..Cost::default() } }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    fn vote(logits: &[f32]) -> StoredVote {
        let mut vote = StoredVote::of(logits.to_vec(), 1);
        vote.output.evidence.feature = Some(Arc::from([0.5]));
        vote.cost.preprocess = Duration::from_nanos(500_001);
        vote
    }

    #[test]
    fn votes_are_found_again_and_damaged_lines_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (model, other) = (Digest::of(b"model"), Digest::of(b"other"));
        let [first, second, third] = [b"1", b"2", b"3"].map(|image| Digest::of(image));
        {
            let mut store = VoteStore::open(folder.path(), &model, 2).unwrap();
            assert_eq!(store.get(&first), None);
            store.put(&first, vote(&[0.25, -1.0e-7])).unwrap();
            assert_eq!(store.get(&first), Some(&vote(&[0.25, -1.0e-7])));
        }
        let path = folder.path().join(format!("{model}.v{VERSION}.jsonl"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(b"{\"image\": \"half of a l\xff");
        std::fs::write(&path, bytes).unwrap();
        {
            let mut store = VoteStore::open(folder.path(), &model, 2).unwrap();
            assert_eq!(store.get(&first), Some(&vote(&[0.25, -1.0e-7])));
            store.put(&second, vote(&[3.0, 0.5])).unwrap();
            store.put(&third, vote(&[3.0])).unwrap();
        }
        let store = VoteStore::open(folder.path(), &model, 2).unwrap();
        assert_eq!(
            [&first, &second, &third].map(|image| store.get(image).is_some()),
            [true, true, false],
            "the third has too few logits"
        );
        assert_eq!(VoteStore::open(folder.path(), &other, 2).unwrap().get(&first), None, "another model's");
    }

    #[test]
    fn votes_of_another_version_are_not_read() {
        let (folder, model, image) = (tempfile::tempdir().unwrap(), Digest::of(b"model"), Digest::of(b"1"));
        let line = format!("{{\"image\": \"{image}\", \"logits\": [0.0, 1.0], \"microseconds\": 1}}\n");
        for name in [format!("{model}.jsonl"), format!("{model}.v{VERSION}.jsonl")] {
            std::fs::write(folder.path().join(name), &line).unwrap();
        }
        assert_eq!(VoteStore::open(folder.path(), &model, 2).unwrap().get(&image), None);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = VoteStore::open(file.path(), &Digest::of(b"model"), 2).unwrap_err();
        assert!(
            error.contains("votes cannot be stored in") && error.contains(file.path().to_str().unwrap()),
            "{error}"
        );
    }
}
