//! Labelled pictures → what a backbone says of each, in the way of the server, or as it is known from before.

use std::collections::{BTreeSet, HashMap};
use std::thread;

use concord_actors::Digest;
use concord_models::{FeatureKind, FeatureSource, Pixels, Preprocessor, Scale, decode_at, jpeg_size};

use super::store::FeatureStore;
use crate::evaluate::Example;

/// How the features of pictures are come by.
pub(crate) struct Extraction<'a, R> {
    pub(crate) source: &'a dyn FeatureSource,
    pub(crate) kind: FeatureKind,
    pub(crate) preparation: Preparation,
    /// Pictures that run together.
    pub(crate) batch: usize,
    /// The bytes of a picture, or why there are none.
    pub(crate) read: R,
}

/// How a picture becomes a model's input.
#[derive(Debug)]
pub(crate) struct Preparation {
    /// For the model's device.
    pub(crate) preprocessor: Preprocessor,
    pub(crate) max_pixels: u64,
    /// Whether JPEGs are decoded no larger than the model needs.
    pub(crate) decodes_fast: bool,
}

/// Pictures of which all is known that a head is trained on, each once.
#[derive(Debug, Default)]
pub(crate) struct Labelled {
    /// Features, of one picture after the other.
    pub(crate) values: Vec<f32>,
    pub(crate) labels: Vec<usize>,
    pub(crate) groups: Vec<usize>,
    digests: Vec<Digest>,
    /// How many could not be read.
    pub(crate) left_out: usize,
    /// How many were there before.
    pub(crate) repeated: usize,
    /// What went wrong, each fault once.
    pub(crate) faults: BTreeSet<String>,
}

/// A picture whose bytes have been read.
struct Encoded<'a> {
    example: &'a Example,
    digest: Digest,
    bytes: Vec<u8>,
}

impl<R: Fn(&Example) -> Result<Vec<u8>, String>> Extraction<'_, R> {
    /// Of all pictures, asking `store` first and keeping there what is new; `on_progress` is told how many more are done.
    ///
    /// # Errors
    /// When the model fails, features cannot be kept, or a picture is there with two labels.
    pub(crate) fn run(
        &self,
        examples: &[Example],
        store: &mut FeatureStore,
        mut on_progress: impl FnMut(u64),
    ) -> Result<Labelled, String> {
        let mut labelled = Labelled::default();
        let mut seen = HashMap::<Digest, &Example>::new();
        for chunk in examples.chunks(self.batch) {
            let mut new = Vec::new();
            for example in chunk {
                let bytes = match (self.read)(example) {
                    Ok(bytes) => bytes,
                    Err(fault) => {
                        labelled.leave_out(fault);
                        continue;
                    }
                };
                let digest = Digest::of(&bytes);
                match seen.insert(digest, example) {
                    None => new.push(Encoded { example, digest, bytes }),
                    // It would be in the part that is trained on and in the part that is judged.
                    Some(other) if other.label == example.label => labelled.repeated += 1,
                    Some(other) => {
                        let [one, other] = [&other.name, &example.name];
                        return Err(format!("{one} and {other} are the same picture with two labels"));
                    }
                }
            }
            self.add(new, store, &mut labelled)?;
            on_progress(chunk.len() as u64);
        }
        Ok(labelled)
    }

    /// Adds pictures that have not been seen before.
    fn add(
        &self,
        pictures: Vec<Encoded<'_>>,
        store: &mut FeatureStore,
        labelled: &mut Labelled,
    ) -> Result<(), String> {
        let mut unknown = Vec::new();
        for picture in pictures {
            if store.read_into(&picture.digest, &mut labelled.values)? {
                labelled.take(&picture);
            } else {
                unknown.push(picture);
            }
        }
        let mut ready = Vec::new();
        for (picture, pixels) in unknown.iter().zip(self.preparation.all(&unknown)) {
            match pixels {
                Ok(pixels) => ready.push((picture, pixels)),
                Err(fault) => labelled.leave_out(format!("{}: {fault}", picture.example.name)),
            }
        }
        let pixels: Vec<&Pixels> = ready.iter().map(|(_, pixels)| pixels).collect();
        let features = self.source.features(&pixels, self.kind).map_err(|error| error.to_string())?;
        for ((picture, _), values) in ready.iter().zip(features) {
            store.put(&picture.digest, &values)?;
            labelled.values.extend(values);
            labelled.take(picture);
        }
        Ok(())
    }
}

impl Preparation {
    /// Each picture as the model's input, on all cores.
    fn all(&self, pictures: &[Encoded<'_>]) -> Vec<Result<Pixels, String>> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = pictures.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            let parts = pictures.chunks(share).map(|part| {
                let each = || part.iter().map(|picture| self.pixels(&picture.bytes)).collect::<Vec<_>>();
                (part.len(), scope.spawn(each))
            });
            let started: Vec<_> = parts.collect();
            let finished = started.into_iter().flat_map(|(count, thread)| {
                let panicked = |_| (0..count).map(|_| Err("the picture cannot be made ready".to_owned()));
                thread.join().unwrap_or_else(|panic| panicked(panic).collect())
            });
            finished.collect()
        })
    }

    fn pixels(&self, bytes: &[u8]) -> Result<Pixels, String> {
        let size = if self.decodes_fast {
            jpeg_size(bytes, self.max_pixels).map_err(|error| error.to_string())?
        } else {
            None
        };
        let scale = size.map_or(Scale::WHOLE, |size| self.preprocessor.scale(size));
        let picture = decode_at(bytes, self.max_pixels, scale).map_err(|error| error.to_string())?;
        self.preprocessor.apply_picture(&picture).map_err(|error| error.to_string())
    }
}

impl Labelled {
    /// Counts a picture whose features have been added.
    fn take(&mut self, picture: &Encoded<'_>) {
        self.labels.push(picture.example.label);
        self.groups.push(picture.example.group);
        self.digests.push(picture.digest);
    }

    fn leave_out(&mut self, fault: String) {
        self.left_out += 1;
        self.faults.insert(fault);
    }

    /// The digest of all pictures with their labels, in whatever order they came.
    pub(crate) fn digest(&self) -> Digest {
        let mut each: Vec<_> = self.digests.iter().zip(&self.labels).collect();
        each.sort_unstable();
        let bytes = each.into_iter().flat_map(|(digest, label)| {
            digest.as_bytes().iter().copied().chain((*label as u64).to_le_bytes())
        });
        Digest::of(&bytes.collect::<Vec<u8>>())
    }
}
