//! Named tensors from safetensors files, checked against the shapes that a configuration asks for.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use tch::{Device, Kind, Tensor};

use crate::ModelError;

/// The largest size of a header in bytes, the same as in the safetensors library: 7B models need about 100
/// kB.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// A safetensors file, mapped into memory: its tensors are views, which are read from disk when they are
/// used.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    path: PathBuf,
    metadata: Metadata,
    /// The offset of the tensors in the file, in bytes.
    data_offset: u64,
    bytes: Tensor,
}

impl SafetensorsFile {
    /// Opens `path`; its tensors are read only when they are taken.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let malformed = |message: String| ModelError::malformed(path, message);
        let read = || -> std::io::Result<(u64, Option<Vec<u8>>)> {
            let mut file = File::open(path)?;
            let length = file.metadata()?.len();
            let mut size = [0; 8];
            file.read_exact(&mut size)?;
            let size = u64::from_le_bytes(size);
            if size > HEADER_BYTES_MAX.min(length.saturating_sub(8)) {
                return Ok((length, None));
            }
            let mut header = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            file.read_exact(&mut header)?;
            Ok((length, Some(header)))
        };
        let (length, header) = read().map_err(|source| ModelError::file(path, source))?;
        let header =
            header.ok_or_else(|| malformed("not a safetensors file: its header does not fit".into()))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(format!("not a safetensors file: {error}")))?;
        let data_offset = 8 + header.len() as u64;
        let expected = data_offset + metadata.data_len() as u64;
        // A mapped file that is shorter than its tensors would end the process when they are read.
        if length != expected {
            return Err(malformed(format!(
                "has {length} bytes where its header says {expected}: a broken download?"
            )));
        }
        let name = path.to_str().ok_or_else(|| malformed("the path is not UTF-8".into()))?;
        let size = i64::try_from(length).map_err(|error| malformed(error.to_string()))?;
        let bytes = Tensor::f_from_file(name, false, size, (Kind::Uint8, Device::Cpu))?;
        Ok(Self { path: path.to_owned(), metadata, data_offset, bytes })
    }

    /// Returns the names of the file's tensors.
    pub(crate) fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    /// Returns the name, shape and number format of every tensor. Those in unsupported formats are left out,
    /// since loading refuses them.
    pub(crate) fn layout(&self) -> Vec<(String, Vec<i64>, Kind)> {
        let tensors = self.metadata.tensors().into_keys();
        let layout = |name: String| {
            let kind = kind_of(self.metadata.info(&name)?.dtype)?;
            let shape = self.shape(&name)?;
            Some((name, shape, kind))
        };
        tensors.filter_map(layout).collect()
    }

    /// Returns an entry of the file's own metadata, for instance the labels of a head.
    pub(crate) fn note(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Returns the shape of a tensor, if there is one with that name.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let info = self.metadata.info(name)?;
        Some(info.shape.iter().map(|&side| i64::try_from(side).unwrap_or(i64::MAX)).collect())
    }

    /// Returns the tensor with that name as it is in the file, as a view of the mapping.
    pub(crate) fn tensor(&self, name: &str) -> Result<Tensor, ModelError> {
        let malformed = |message: String| ModelError::malformed(&self.path, message);
        let info = self.metadata.info(name).ok_or_else(|| malformed(format!("no tensor {name}")))?;
        let kind = kind_of(info.dtype).ok_or_else(|| {
            malformed(format!("{name} is of type {:?}, which is not supported", info.dtype))
        })?;
        let shape = self.shape(name).unwrap_or_default();
        let (begin, end) = info.data_offsets;
        let begin = i64::try_from(self.data_offset + begin as u64).unwrap_or(i64::MAX);
        let length = i64::try_from(end - info.data_offsets.0).unwrap_or(i64::MAX);
        let mut bytes = self.bytes.f_narrow(0, begin, length)?;
        if begin % i64::try_from(kind.elt_size_in_bytes()).unwrap_or(1) != 0 {
            bytes = bytes.copy(); // only a file with an unpadded header: a view must be aligned
        }
        Ok(bytes.f_view_dtype(kind)?.f_view(shape.as_slice())?)
    }
}

/// Returns the number format of a safetensors type, or `None` if it is not supported.
fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// The source of a snapshot's tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WeightSource {
    /// The snapshot's files.
    #[default]
    Files,
    /// Random values that are generated on the device on request, to benchmark models without their weights.
    Random {
        /// The seed: equal seeds give equal weights on the same device.
        seed: i64,
    },
}

/// The standard deviation with which transformers initializes these models.
const RANDOM_STD: f64 = 0.02;

/// A loader that returns a snapshot's tensors by name and expected shape, on a device and in a number format.
///
/// Faults are collected, not returned one by one: a tensor that is missing or has another shape comes back
/// empty, and [`WeightLoader::finish`] fails with all of them. Nothing may be computed with the tensors until
/// it has succeeded.
#[derive(Debug)]
pub(crate) struct WeightLoader {
    path: PathBuf,
    source: WeightSource,
    files: Vec<SafetensorsFile>,
    file_of: HashMap<String, usize>,
    /// Maps the name by which a tensor is requested to its name in the files.
    rename: fn(&str) -> String,
    device: Device,
    kind: Kind,
    /// Says whether layers multiply in fp8.
    fp8_products: bool,
    taken: BTreeSet<String>,
    faults: Vec<String>,
    parameters: i64,
}

impl WeightLoader {
    /// Opens a loader over `files`; `path` appears in its error.
    pub(crate) fn open(
        path: &Path,
        files: &[PathBuf],
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let files: Vec<SafetensorsFile> =
            files.iter().map(|file| SafetensorsFile::open(file)).collect::<Result<_, _>>()?;
        let mut file_of = HashMap::new();
        for (index, file) in files.iter().enumerate() {
            file_of.extend(file.names().into_iter().map(|name| (name, index)));
        }
        Ok(Self {
            path: path.to_owned(),
            source: WeightSource::Files,
            files,
            file_of,
            rename: str::to_owned,
            device,
            kind,
            fp8_products: false,
            taken: BTreeSet::new(),
            faults: Vec::new(),
            parameters: 0,
        })
    }

    /// Creates a loader that has random values for every requested tensor. [`Self::has`] returns false for
    /// all of them, so that of several file layouts the plain one is made.
    pub(crate) fn random(path: &Path, seed: i64, device: Device, kind: Kind) -> Result<Self, ModelError> {
        tch::manual_seed(seed);
        Ok(Self { source: WeightSource::Random { seed }, ..Self::open(path, &[], device, kind)? })
    }

    /// Sets whether the products within layers are to be computed in fp8.
    pub(crate) fn with_fp8_products(self, fp8_products: bool) -> Self {
        Self { fp8_products, ..self }
    }

    /// Runs `load` without fp8 products, and returns its result.
    pub(crate) fn without_fp8<T>(&mut self, load: impl FnOnce(&mut Self) -> T) -> T {
        let before = std::mem::replace(&mut self.fp8_products, false);
        let loaded = load(self);
        self.fp8_products = before;
        loaded
    }

    /// Returns whether the products within layers are to be computed in fp8, which is false by default.
    pub(crate) fn fp8_products(&self) -> bool {
        self.fp8_products
    }

    /// Sets a function that maps the names by which tensors are requested from now on to their names in the
    /// files.
    pub(crate) fn rename(&mut self, rename: fn(&str) -> String) {
        self.rename = rename;
    }

    /// Returns whether the snapshot has a tensor with that name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.file_of.contains_key(&(self.rename)(name))
    }

    /// Returns the shape of a tensor in the file, if there is one with that name.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let name = (self.rename)(name);
        self.files[*self.file_of.get(&name)?].shape(&name)
    }

    /// Returns the tensor with that name and shape, on the loader's device and in its number format. A fault
    /// gives an empty tensor, and is reported by [`Self::finish`].
    pub(crate) fn tensor(&mut self, name: &str, shape: &[i64]) -> Tensor {
        let name = (self.rename)(name);
        let loaded = self.load(&name, shape);
        self.taken.insert(name);
        match loaded {
            Ok(tensor) => {
                self.parameters += shape.iter().product::<i64>();
                tensor
            }
            Err(fault) => {
                self.faults.push(fault);
                Tensor::empty([0], (self.kind, Device::Cpu))
            }
        }
    }

    /// Returns the tensor with that name in the files, or a fault as text.
    fn load(&self, name: &str, shape: &[i64]) -> Result<Tensor, String> {
        if self.source != WeightSource::Files {
            return self.make(name, shape).map_err(|error| format!("{name}: {error}"));
        }
        let file = self.file_of.get(name).map(|&index| &self.files[index]);
        let file = file.ok_or_else(|| format!("{name}: missing, expected {shape:?}"))?;
        let found = file.shape(name).unwrap_or_default();
        if found != shape {
            return Err(format!("{name}: expected {shape:?}, found {found:?}"));
        }
        let tensor = file.tensor(name).map_err(|error| error.to_string())?;
        // The tensor is always copied: a parameter must not keep a view of a file that may be replaced.
        let copied = tensor.f_to_device_(self.device, self.kind, false, true);
        copied.map_err(|error| format!("{name}: {error}"))
    }

    /// Generates a tensor. The only one-dimensional weights are those of norms, which are ones, so that the
    /// norm keeps its scale.
    fn make(&self, name: &str, shape: &[i64]) -> Result<Tensor, tch::TchError> {
        if shape.len() == 1 && name.ends_with("weight") {
            return Tensor::f_ones(shape, (self.kind, self.device));
        }
        // On a CPU, values in half precision would be generated one at a time.
        let made_as = if self.device == Device::Cpu { Kind::Float } else { self.kind };
        Tensor::f_empty(shape, (made_as, self.device))?.f_normal_(0.0, RANDOM_STD)?.f_to_kind(self.kind)
    }

    /// Ends the loading; returns the number of parameters that were taken.
    ///
    /// # Errors
    /// Returns an error with all tensors that were missing or had another shape.
    pub(crate) fn finish(self) -> Result<i64, ModelError> {
        if !self.faults.is_empty() {
            return Err(ModelError::Weights { path: self.path, faults: self.faults });
        }
        let unused: Vec<&String> = self.file_of.keys().filter(|name| !self.taken.contains(*name)).collect();
        if !unused.is_empty() {
            let example = unused.iter().min();
            tracing::debug!(path = %self.path.display(), count = unused.len(), ?example, "tensors not used by this model");
        }
        Ok(self.parameters)
    }
}
