//! How much of a device's memory a model will need, from the headers of its files, before anything of it is loaded.

use std::path::Path;

use ::image::RgbImage;
use serde_json::Value;
use tch::Kind;

use super::torchscript;
use crate::ModelError;
use crate::architectures::architecture::Architecture;
use crate::image::preprocess::{PixelLayout, Preprocessor};
use crate::kernels::fp8;
use crate::options::ModelOptions;
use crate::runtime::device::{computed_in, parse_dtype};
use crate::snapshot::folder::{Snapshot, TORCHSCRIPT_FILE};
use crate::snapshot::weights::SafetensorsFile;

/// So many values as wide as the widest layer are alive at once for each token: that layer's output before and after
/// its activation, and, each a quarter as wide, the residual, its normalised copy, queries, keys, values and the
/// attention's output; the rest is what an allocator keeps between them.
const LIVE_WIDTHS: u64 = 4;
/// Where the configuration names no patch: the smallest that published models use.
const PATCH: u64 = 14;
const PATCH_KEY: &str = "patch_size";
/// A matrix with more rows than this for each column is a vocabulary, of which a token has one row.
const EMBEDDING_ROWS_PER_COLUMN: i64 = 8;
/// As large as most photographs after their processors, which make up to a fixed number of crops of them.
const PROBE_SIDE: u32 = 1024;
/// Libraries beside libtorch: on a GPU cuBLAS keeps a workspace of 32 MiB for each stream and thread, and cuBLASLt
/// another.
const WORKSPACE_BYTES: u64 = 64 << 20;

/// What one copy of a model is estimated to take of its device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Of the parameters, in the number format that they are converted to, heads included.
    pub parameter_bytes: u64,
    /// A reserve for what is computed: `max_batch` images at once, each as many tokens as a large photograph makes,
    /// each token four times as wide as the widest layer; and the workspaces of the libraries.
    pub activation_bytes: u64,
}

impl MemoryEstimate {
    /// Both.
    pub fn total(&self) -> u64 {
        self.parameter_bytes.saturating_add(self.activation_bytes)
    }

    /// For the model that `options` describe; a relative snapshot path starts at `base`. Reads headers only.
    ///
    /// # Errors
    /// When a file is missing or malformed, as loading would say.
    pub fn of(options: &ModelOptions, base: &Path) -> Result<Self, ModelError> {
        let snapshot = Snapshot::of(base, &options.snapshot)?;
        if snapshot.is_random() {
            return Err(ModelError::Unsupported(
                "random weights are in no file that tells their sizes".to_owned(),
            ));
        }
        let kind = parse_dtype(&options.dtype)?;
        let in_fp8 = Architecture::by_name(&options.architecture)
            .filter(|_| kind == Kind::Float8e4m3fn)
            .map_or(&[][..], |architecture| architecture.fp8);
        let kind = computed_in(kind);
        let mut layout = Layout { in_fp8, ..Layout::default() };
        for file in snapshot.weight_files()? {
            layout.add(&file, kind)?;
        }
        for head in options.heads().values() {
            layout.add(&snapshot.path(&head.to_string_lossy()), kind)?;
        }
        let tokens = tokens_of_an_image(&snapshot, options)?;
        let an_image = tokens
            .saturating_mul(LIVE_WIDTHS)
            .saturating_mul(layout.widest)
            .saturating_mul(size_of_kind(kind));
        let activation_bytes =
            an_image.saturating_mul(options.max_batch as u64).saturating_add(WORKSPACE_BYTES);
        Ok(Self { parameter_bytes: layout.bytes, activation_bytes })
    }
}

/// What the headers of a snapshot's files say together.
#[derive(Default)]
struct Layout {
    /// How the names of tensors begin whose matrices are of fp8.
    in_fp8: &'static [&'static str],
    bytes: u64,
    /// The most values that a layer gives for one token.
    widest: u64,
}

impl Layout {
    fn add(&mut self, path: &Path, kind: Kind) -> Result<(), ModelError> {
        if path.file_name().is_some_and(|name| name == TORCHSCRIPT_FILE) {
            return self.add_module(path);
        }
        for (name, shape, stored) in SafetensorsFile::open(path)?.layout() {
            let values: i64 = shape.iter().product();
            // Only floating-point values are converted.
            let is_real = matches!(stored, Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16);
            let size = size_of_kind(if is_real { kind } else { stored });
            let is_fp8 = self.in_fp8.iter().any(|start| name.starts_with(start)) && fp8::fits(&shape);
            let bytes = if is_fp8 {
                fp8::weight_bytes(&shape)
            } else {
                u64::try_from(values).unwrap_or(0).saturating_mul(size)
            };
            self.bytes = self.bytes.saturating_add(bytes);
            if let [rows, columns] = shape[..]
                && rows <= columns.saturating_mul(EMBEDDING_ROWS_PER_COLUMN)
            {
                self.widest = self.widest.max(u64::try_from(rows).unwrap_or(0));
            }
        }
        Ok(())
    }

    /// A TorchScript module says nothing before it is loaded: it takes its file's size, most of which are parameters
    /// as they were saved.
    fn add_module(&mut self, path: &Path) -> Result<(), ModelError> {
        const WIDTH: u64 = 4096;
        let file = std::fs::metadata(path).map_err(|source| ModelError::file(path, source))?;
        self.bytes = self.bytes.saturating_add(file.len());
        self.widest = self.widest.max(WIDTH);
        Ok(())
    }
}

fn size_of_kind(kind: Kind) -> u64 {
    kind.elt_size_in_bytes() as u64
}

/// How many places the model computes at for one image, found by making one ready.
fn tokens_of_an_image(snapshot: &Snapshot, options: &ModelOptions) -> Result<u64, ModelError> {
    let is_module = snapshot.path(TORCHSCRIPT_FILE).is_file();
    let (preprocessor, patch) = if is_module {
        (torchscript::preprocessor(snapshot, options)?, PATCH)
    } else {
        let config = snapshot.json("config.json")?;
        (Preprocessor::load(snapshot)?, patch_of(&config).unwrap_or(PATCH))
    };
    let pixels = preprocessor.apply(&RgbImage::new(PROBE_SIDE, PROBE_SIDE))?;
    let tokens = match &pixels.layout {
        PixelLayout::Crops(tiles) => tiles.pooling.size().first().copied().unwrap_or(0),
        PixelLayout::Patches { grid: [rows, columns] } => rows * columns,
        PixelLayout::Planes | PixelLayout::Bytes => {
            i64::try_from(pixels.values.numel() as u64 / (3 * patch * patch)).unwrap_or(0)
        }
    };
    Ok(u64::try_from(tokens).unwrap_or(0))
}

/// The first patch size that the configuration names, wherever it stands in it.
fn patch_of(config: &Value) -> Option<u64> {
    let table = config.as_object()?;
    let here = table.get(PATCH_KEY).and_then(Value::as_u64).filter(|&patch| patch > 0);
    here.or_else(|| table.values().find_map(patch_of))
}

/// How many bytes Linux would give without taking them from others; `None` where it does not say.
pub fn free_host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
