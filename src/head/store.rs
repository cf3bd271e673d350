//! Features on disk: a second training on the same pictures runs no backbone.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use concord_actors::Digest;

/// Of one file: the tokens of some 14,000 pictures from the largest backbone at 384 pixels. Beyond it the disk is full
/// before anyone notices.
const FILE_BYTES_MAX: u64 = 32 << 30;
/// The digest of a picture.
const DIGEST_BYTES: usize = 32;
/// The beginning of the digest of a record.
const CHECK_BYTES: usize = 8;
/// Of a number.
const NUMBER_BYTES: usize = 4;

/// The features of pictures by one backbone: a file of its own for each thing that they depend on, of records of one size:
/// the picture's digest, a checksum, and the numbers.
#[derive(Debug)]
pub(crate) struct FeatureStore {
    path: PathBuf,
    file: File,
    /// Where the record of a picture is, of all records.
    places: HashMap<Digest, u64>,
    records: u64,
    /// In a record.
    numbers: usize,
}

impl FeatureStore {
    /// The file in `folder` for features of so many numbers that depend on `digest`; made where it is missing. What is
    /// behind the last whole record, as a program that was ended leaves it, is cut off.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub(crate) fn open(folder: &Path, digest: &Digest, numbers: usize) -> Result<Self, String> {
        let path = folder.join(format!("{digest}.features"));
        let told = |error: std::io::Error| format!("features cannot be kept in {}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(told)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(told)?;
        let record = record_bytes(numbers);
        let records = file.metadata().map_err(told)?.len() / record;
        file.set_len(records * record).map_err(told)?;
        let mut places = HashMap::new();
        for place in 0..records {
            let mut picture = [0; DIGEST_BYTES];
            file.seek(SeekFrom::Start(place * record)).map_err(told)?;
            file.read_exact(&mut picture).map_err(told)?;
            places.insert(Digest::from(picture), place);
        }
        Ok(Self { path, file, places, records, numbers })
    }

    /// Whether the file may grow by the features of so many pictures.
    ///
    /// # Errors
    /// When it would be too large.
    pub(crate) fn check_room(&self, pictures: usize) -> Result<(), String> {
        let bytes = (self.records + pictures as u64).saturating_mul(record_bytes(self.numbers));
        if bytes <= FILE_BYTES_MAX {
            return Ok(());
        }
        Err(format!(
            "{} would grow to {} GiB of features, more than {} are kept: remove what is in it, take fewer pictures, or \
             train a linear head, which needs less of each",
            self.path.display(),
            bytes >> 30,
            FILE_BYTES_MAX >> 30
        ))
    }

    /// Appends the features of a picture to `values`; whether they are known. A damaged record counts for nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn read_into(&mut self, picture: &Digest, values: &mut Vec<f32>) -> Result<bool, String> {
        let Some(place) = self.places.get(picture) else { return Ok(false) };
        let size = record_bytes(self.numbers);
        let mut record = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        let read = self.file.seek(SeekFrom::Start(place * size));
        read.and_then(|_| self.file.read_exact(&mut record))
            .map_err(|error| format!("{} cannot be read: {error}", self.path.display()))?;
        let (head, numbers) = record.split_at(DIGEST_BYTES + CHECK_BYTES);
        if head[DIGEST_BYTES..] != check(picture, numbers) {
            self.places.remove(picture);
            return Ok(false);
        }
        let (numbers, _) = numbers.as_chunks::<NUMBER_BYTES>();
        values.extend(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        Ok(true)
    }

    /// Keeps the features of a picture, in one piece, so that a program that is ended leaves whole records but for the
    /// last.
    ///
    /// # Errors
    /// When they cannot be written.
    pub(crate) fn put(&mut self, picture: &Digest, values: &[f32]) -> Result<(), String> {
        let numbers: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let record = [&picture.as_bytes()[..], &check(picture, &numbers), &numbers].concat();
        let told =
            |error: std::io::Error| format!("features cannot be kept in {}: {error}", self.path.display());
        self.file.write_all(&record).map_err(told)?;
        // Another training may have written to it as well.
        let end = self.file.metadata().map_err(told)?.len();
        self.records = end / record_bytes(self.numbers);
        self.places.insert(*picture, self.records.saturating_sub(1));
        Ok(())
    }
}

fn record_bytes(numbers: usize) -> u64 {
    (DIGEST_BYTES + CHECK_BYTES + NUMBER_BYTES * numbers) as u64
}

fn check(picture: &Digest, numbers: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(picture.as_bytes()).update(numbers);
    let mut check = [0; CHECK_BYTES];
    hasher.finalize_xof().fill(&mut check);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(store: &mut FeatureStore, picture: &Digest) -> Option<Vec<f32>> {
        let mut values = Vec::new();
        store.read_into(picture, &mut values).unwrap().then_some(values)
    }

    #[test]
    fn features_are_there_again_and_damaged_ones_are_not() {
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
        for (picture, values) in [(second, vec![4.0, 5.0, 6.0]), (third, vec![7.0, 8.0, 9.0])] {
            assert_eq!(known(&mut store, &picture), Some(values));
        }
        let mut others = FeatureStore::open(folder.path(), &other, 3).unwrap();
        assert_eq!(known(&mut others, &first), None, "another model's");
    }

    #[test]
    fn a_file_that_would_be_too_large_and_a_folder_that_is_none_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = FeatureStore::open(folder.path(), &Digest::of(b"model"), 577 * 1024).unwrap();
        assert_eq!(store.check_room(14_000), Ok(()));
        let told = store.check_room(15_000).unwrap_err();
        assert!(told.contains("would grow to 33 GiB of features, more than 32 are kept"), "{told}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = FeatureStore::open(file.path(), &Digest::of(b"model"), 2).unwrap_err();
        assert!(told.contains("features cannot be kept in"), "{told}");
    }
}
