//! A Hugging Face snapshot folder, whose files are found and parsed as they were published.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tch::Kind;

use crate::ModelError;
use crate::runtime::device::Placement;
use crate::snapshot::presets::{random_name, snapshot_folder};
use crate::snapshot::weights::{WeightLoader, WeightSource};

/// The only file of a folder with a TorchScript module.
pub(crate) const TORCHSCRIPT_FILE: &str = "model.pt";
/// The seed of configured random weights: any number will do, but it must be the same for all replicas of a
/// model.
const SEED: i64 = 0;

/// A folder with `config.json`, safetensors and whatever else the model ships, or with a TorchScript module.
#[derive(Debug, Clone)]
pub struct Snapshot {
    folder: PathBuf,
    source: WeightSource,
}

impl Snapshot {
    /// Opens the snapshot in `folder`.
    ///
    /// # Errors
    /// Returns an error if the folder has neither `config.json` nor a TorchScript module.
    pub(crate) fn open(folder: &Path) -> Result<Self, ModelError> {
        let config = folder.join("config.json");
        if folder.join(TORCHSCRIPT_FILE).is_file() {
            return Ok(Self { folder: folder.to_owned(), source: WeightSource::Files });
        }
        match fs::metadata(&config) {
            Ok(_) => Ok(Self { folder: folder.to_owned(), source: WeightSource::Files }),
            Err(source) => Err(ModelError::File { path: config, source }),
        }
    }

    /// Opens the configured snapshot: `random:PRESET`, or a folder, where a relative one starts at `base`.
    ///
    /// # Errors
    /// Returns an error if there is no such preset or folder.
    pub(crate) fn of(base: &Path, configured: &Path) -> Result<Self, ModelError> {
        let snapshot = Self::open(&snapshot_folder(base, configured)?)?;
        Ok(match random_name(configured) {
            Some(_) => snapshot.with_weights(WeightSource::Random { seed: SEED }),
            None => snapshot,
        })
    }

    /// Returns whether the tensors are generated, not read from files.
    pub(crate) fn is_random(&self) -> bool {
        self.source != WeightSource::Files
    }

    /// Returns the same snapshot with another source of tensors.
    pub(crate) fn with_weights(self, source: WeightSource) -> Self {
        Self { source, ..self }
    }

    /// Returns a loader of the snapshot's tensors.
    ///
    /// # Errors
    /// Returns an error if there are no files with weights, or one of them is broken.
    pub(crate) fn weights(&self, place: Placement) -> Result<WeightLoader, ModelError> {
        let (device, kind) = (place.device, place.computed_in());
        let loader = match self.source {
            WeightSource::Files => WeightLoader::open(&self.folder, &self.weight_files()?, device, kind),
            WeightSource::Random { seed } => WeightLoader::random(&self.folder, seed, device, kind),
        };
        Ok(loader?.with_fp8_products(place.kind == Kind::Float8e4m3fn))
    }

    /// Returns the folder itself.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of one of the snapshot's files.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// Parses one of the snapshot's JSON files.
    ///
    /// # Errors
    /// Returns an error if the file is missing or does not have the form of `T`; the message has line and
    /// column.
    pub(crate) fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T, ModelError> {
        let path = self.path(file);
        let text = fs::read_to_string(&path).map_err(|source| ModelError::file(&path, source))?;
        serde_json::from_str(&text).map_err(|error| ModelError::malformed(&path, error))
    }

    /// Returns the `model_type` of `config.json`.
    ///
    /// # Errors
    /// Returns an error if there is none.
    pub(crate) fn model_type(&self) -> Result<String, ModelError> {
        #[derive(serde::Deserialize)]
        struct Typed {
            model_type: String,
        }
        Ok(self.json::<Typed>("config.json")?.model_type)
    }

    /// Returns the files with the weights: `model.safetensors`, the shards that its index names, or the
    /// TorchScript module. Random weights have no files.
    ///
    /// # Errors
    /// Returns an error if there are no such files, or if the index is malformed or points outside the
    /// folder.
    pub(crate) fn weight_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        const INDEX: &str = "model.safetensors.index.json";
        if self.is_random() {
            return Ok(Vec::new());
        }
        let module = self.path(TORCHSCRIPT_FILE);
        if module.is_file() {
            return Ok(vec![module]);
        }
        let single = self.path("model.safetensors");
        if single.exists() {
            return Ok(vec![single]);
        }
        if !self.path(INDEX).exists() {
            let missing =
                std::io::Error::new(std::io::ErrorKind::NotFound, format!("not found, nor {INDEX}"));
            return Err(ModelError::file(&single, missing));
        }
        let index: Index = self.json(INDEX)?;
        let mut shards: Vec<String> = index.weight_map.into_values().collect();
        shards.sort();
        shards.dedup();
        if let Some(outside) = shards.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
            return Err(ModelError::malformed(
                &self.path(INDEX),
                format!("{outside:?} is not a plain file name"),
            ));
        }
        Ok(shards.iter().map(|shard| self.path(shard)).collect())
    }
}
