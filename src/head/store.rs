//! Stores features on disk, so that a second training on the same images runs no backbone.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use concord_actors::Digest;

/// The largest size of a file: the tokens of some 14,000 images from the largest backbone at 384 pixels. A
/// larger one could fill the disk unnoticed.
const FILE_BYTES_MAX: u64 = 32 << 30;
/// The size of the digest of an image.
const DIGEST_BYTES: usize = 32;
/// The size of a record's checksum.
const CHECK_BYTES: usize = 8;
/// The size of a number.
const NUMBER_BYTES: usize = 4;

/// The stored features of images by one backbone, in a file for each combination of the inputs that they
/// depend on. A record has a fixed size: the image's digest, a checksum, and the numbers.
#[derive(Debug)]
pub(crate) struct FeatureStore {
    path: PathBuf,
    file: File,
    /// The index of the record of each image.
    places: HashMap<Digest, u64>,
    records: u64,
    /// The number of numbers in a record.
    numbers: usize,
}

impl FeatureStore {
    /// Opens or creates the file in `folder` for features of this many numbers, whose inputs have the digest
    /// `digest`. A partial last record, which a killed program may leave, is cut off.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn open(folder: &Path, digest: &Digest, numbers: usize) -> Result<Self, String> {
        let path = folder.join(format!("{digest}.features"));
        let with_context =
            |error: std::io::Error| format!("features cannot be stored in {}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(with_context)?;
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(with_context)?;
        let record = record_bytes(numbers);
        let records = file.metadata().map_err(with_context)?.len() / record;
        file.set_len(records * record).map_err(with_context)?;
        let mut places = HashMap::new();
        for place in 0..records {
            let mut image = [0; DIGEST_BYTES];
            file.seek(SeekFrom::Start(place * record)).map_err(with_context)?;
            file.read_exact(&mut image).map_err(with_context)?;
            places.insert(Digest::from(image), place);
        }
        Ok(Self { path, file, places, records, numbers })
    }

    /// Checks that the file may grow by the features of this many images.
    ///
    /// # Errors
    /// When it would be too large.
    pub(crate) fn check_room(&self, images: usize) -> Result<(), String> {
        let bytes = (self.records + images as u64).saturating_mul(record_bytes(self.numbers));
        if bytes <= FILE_BYTES_MAX {
            return Ok(());
        }
        Err(format!(
            "{} would grow to {} GiB of features, and the limit is {} GiB: delete it, take fewer images, or train a linear \
             head, which needs fewer features of each",
            self.path.display(),
            bytes >> 30,
            FILE_BYTES_MAX >> 30
        ))
    }

    /// Appends the features of an image to `values`, and returns whether they are stored. A damaged record is
    /// ignored.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn read_into(&mut self, image: &Digest, values: &mut Vec<f32>) -> Result<bool, String> {
        let Some(place) = self.places.get(image) else { return Ok(false) };
        let size = record_bytes(self.numbers);
        let mut record = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = self.file.seek(SeekFrom::Start(place * size));
        read.and_then(|_| self.file.read_exact(&mut record))
            .map_err(|error| format!("{} cannot be read: {error}", self.path.display()))?;
        let (head, numbers) = record.split_at(DIGEST_BYTES + CHECK_BYTES);
        if head[DIGEST_BYTES..] != check(image, numbers) {
            self.places.remove(image);
            return Ok(false);
        }
        let (numbers, _) = numbers.as_chunks::<NUMBER_BYTES>();
        values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        Ok(true)
    }

    /// Stores the features of an image, in a single write, so that a program that is killed leaves only whole
    /// records, except possibly the last.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn put(&mut self, image: &Digest, values: &[f32]) -> Result<(), String> {
        let numbers: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let record = [&image.as_bytes()[..], &check(image, &numbers), &numbers].concat();
        let with_context =
            |error: std::io::Error| format!("features cannot be stored in {}: {error}", self.path.display());
        self.file.write_all(&record).map_err(with_context)?;
        // Another training may have written to it as well.
        let end = self.file.metadata().map_err(with_context)?.len();
        self.records = end / record_bytes(self.numbers);
        self.places.insert(*image, self.records.saturating_sub(1));
        Ok(())
    }
}

fn record_bytes(numbers: usize) -> u64 {
    (DIGEST_BYTES + CHECK_BYTES + NUMBER_BYTES * numbers) as u64
}

fn check(image: &Digest, numbers: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(image.as_bytes()).update(numbers);
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(store: &mut FeatureStore, image: &Digest) -> Option<Vec<f32>> {
        let mut values = Vec::new();
        store.read_into(image, &mut values).unwrap().then_some(values)
    }

    #[test]
    fn features_are_found_again_and_damaged_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (model, other) = (Digest::of(b"model"), Digest::of(b"other"));
        let [first, second, third] = [b"1", b"2", b"3"].map(|image| Digest::of(image));
        let mut store = FeatureStore::open(folder.path(), &model, 3).unwrap();
        assert_eq!(known(&mut store, &first), None);
        store.put(&first, &[1.0, -2.5, 3.0]).unwrap();
        store.put(&second, &[4.0, 5.0, 6.0]).unwrap();
        assert_eq!(known(&mut store, &first), Some(vec![1.0, -2.5, 3.0]));
        drop(store);
        let path = folder.path().join(format!("{model}.features"));
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes.extend(b"half of a record");
        std::fs::write(&path, bytes).unwrap();
        let mut store = FeatureStore::open(folder.path(), &model, 3).unwrap();
        assert_eq!(known(&mut store, &first), Some(vec![1.0, -2.5, 3.0]));
        assert_eq!(known(&mut store, &second), None, "a bit of it has changed");
        store.put(&second, &[4.0, 5.0, 6.0]).unwrap();
        store.put(&third, &[7.0, 8.0, 9.0]).unwrap();
        for (image, values) in [(second, vec![4.0, 5.0, 6.0]), (third, vec![7.0, 8.0, 9.0])] {
            assert_eq!(known(&mut store, &image), Some(values));
        }
        let mut others = FeatureStore::open(folder.path(), &other, 3).unwrap();
        assert_eq!(known(&mut others, &first), None, "another model's");
    }

    #[test]
    fn a_file_that_would_be_too_large_and_a_file_in_place_of_the_folder_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let store = FeatureStore::open(folder.path(), &Digest::of(b"model"), 577 * 1024).unwrap();
        assert_eq!(store.check_room(14_000), Ok(()));
        let error = store.check_room(15_000).unwrap_err();
        assert!(error.contains("would grow to 33 GiB of features, and the limit is 32 GiB"), "{error}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = FeatureStore::open(file.path(), &Digest::of(b"model"), 2).unwrap_err();
        assert!(error.contains("features cannot be stored in"), "{error}");
    }
}
