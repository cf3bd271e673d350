//! Extracts a backbone's features of labeled images, with the preprocessing of the server, or takes them from
//! the store.

use std::collections::{BTreeSet, HashMap};
use std::thread;

use concord_actors::Digest;
use concord_models::{
    FeatureKind, FeatureSource, ImageLimits, Pixels, PreprocessLimits, Preprocessor, Scale, decode_at,
    jpeg_size,
};

use super::store::FeatureStore;
use crate::evaluate::Example;

/// The settings by which features are extracted.
pub(crate) struct Extraction<'a, R> {
    pub(crate) source: &'a dyn FeatureSource,
    pub(crate) kind: FeatureKind,
    pub(crate) preparation: Preparation,
    /// The number of images in a batch.
    pub(crate) batch: usize,
    /// Reads the bytes of an image.
    pub(crate) read: R,
}

/// The preparation of images as a model's input.
#[derive(Debug)]
pub(crate) struct Preparation {
    /// The preprocessor for the model's device.
    pub(crate) preprocessor: Preprocessor,
    pub(crate) limits: ImageLimits,
    /// `true` if JPEGs are decoded no larger than the model needs.
    pub(crate) decodes_fast: bool,
}

/// The features, labels and groups of images that a head is trained on, each image once.
#[derive(Debug, Default)]
pub(crate) struct ExtractedFeatures {
    /// The features, of one image after the other.
    pub(crate) values: Vec<f32>,
    pub(crate) labels: Vec<usize>,
    pub(crate) groups: Vec<usize>,
    digests: Vec<Digest>,
    /// The number of images that could not be read.
    pub(crate) left_out: usize,
    /// The number of duplicate images.
    pub(crate) repeated: usize,
    /// The distinct errors, in words.
    pub(crate) faults: BTreeSet<String>,
}

/// An image that has been read but not decoded.
struct Encoded<'a> {
    example: &'a Example,
    digest: Digest,
    bytes: Vec<u8>,
}

impl<R: Fn(&Example) -> Result<Vec<u8>, String>> Extraction<'_, R> {
    /// Returns the features of all images: those in `store`, and the others by running the backbone, which
    /// are then stored. `on_progress` is called with the number of images done since the last call.
    ///
    /// # Errors
    /// When the model fails, features cannot be stored, or an image occurs with two labels.
    pub(crate) fn run(
        &self,
        examples: &[Example],
        store: &mut FeatureStore,
        mut on_progress: impl FnMut(u64),
    ) -> Result<ExtractedFeatures, String> {
        let mut extracted = ExtractedFeatures::default();
        let mut seen = HashMap::<Digest, &Example>::new();
        for chunk in examples.chunks(self.batch) {
            let mut new = Vec::new();
            for example in chunk {
                let bytes = match (self.read)(example) {
                    Ok(bytes) => bytes,
                    Err(fault) => {
                        extracted.leave_out(fault);
                        continue;
                    }
                };
                let digest = Digest::of(&bytes);
                match seen.insert(digest, example) {
                    None => new.push(Encoded { example, digest, bytes }),
                    // Counted twice, it could be both in the training and in the validation part.
                    Some(other) if other.label == example.label => extracted.repeated += 1,
                    Some(other) => {
                        let [one, other] = [&other.name, &example.name];
                        return Err(format!("{one} and {other} are the same image with two labels"));
                    }
                }
            }
            self.add(new, store, &mut extracted)?;
            on_progress(chunk.len() as u64);
        }
        Ok(extracted)
    }

    /// Adds the features of images that have not been seen before.
    fn add(
        &self,
        images: Vec<Encoded<'_>>,
        store: &mut FeatureStore,
        extracted: &mut ExtractedFeatures,
    ) -> Result<(), String> {
        let mut unknown = Vec::new();
        for image in images {
            if store.read_into(&image.digest, &mut extracted.values)? {
                extracted.record(&image);
            } else {
                unknown.push(image);
            }
        }
        let mut ready = Vec::new();
        for (image, pixels) in unknown.iter().zip(self.preparation.all(&unknown)) {
            match pixels {
                Ok(pixels) => ready.push((image, pixels)),
                Err(fault) => extracted.leave_out(format!("{}: {fault}", image.example.name)),
            }
        }
        let pixels: Vec<&Pixels> = ready.iter().map(|(_, pixels)| pixels).collect();
        let features = self.source.features(&pixels, self.kind).map_err(|error| error.to_string())?;
        for ((image, _), values) in ready.iter().zip(features) {
            store.put(&image.digest, &values)?;
            extracted.values.extend(values);
            extracted.record(image);
        }
        Ok(())
    }
}

impl Preparation {
    /// Prepares each image as the model's input, on all cores.
    fn all(&self, images: &[Encoded<'_>]) -> Vec<Result<Pixels, String>> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = images.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            let parts = images.chunks(share).map(|part| {
                let each = || part.iter().map(|image| self.pixels(&image.bytes)).collect::<Vec<_>>();
                (part.len(), scope.spawn(each))
            });
            let started: Vec<_> = parts.collect();
            let finished = started.into_iter().flat_map(|(count, thread)| {
                let panicked = |_| (0..count).map(|_| Err("the image cannot be prepared".to_owned()));
                thread.join().unwrap_or_else(|panic| panicked(panic).collect())
            });
            finished.collect()
        })
    }

    fn pixels(&self, bytes: &[u8]) -> Result<Pixels, String> {
        let size = if self.decodes_fast {
            jpeg_size(bytes, self.limits).map_err(|error| error.to_string())?
        } else {
            None
        };
        let scale = size.map_or(Scale::WHOLE, |size| self.preprocessor.scale(size));
        let image = decode_at(bytes, self.limits, scale, &|| true).map_err(|error| error.to_string())?;
        self.preprocessor
            .apply_decoded(&image, &PreprocessLimits::default())
            .map_err(|error| error.to_string())
    }
}

impl ExtractedFeatures {
    /// Records an image whose features have been added.
    fn record(&mut self, image: &Encoded<'_>) {
        self.labels.push(image.example.label);
        self.groups.push(image.example.group);
        self.digests.push(image.digest);
    }

    fn leave_out(&mut self, fault: String) {
        self.left_out += 1;
        self.faults.insert(fault);
    }

    /// Returns the digest of all images with their labels, whatever their order.
    pub(crate) fn digest(&self) -> Digest {
        let mut each: Vec<_> = self.digests.iter().zip(&self.labels).collect();
        each.sort_unstable();
        let bytes = each.into_iter().flat_map(|(digest, label)| {
            digest.as_bytes().iter().copied().chain((*label as u64).to_le_bytes())
        });
        Digest::of(&bytes.collect::<Vec<u8>>())
    }
}
