//! The estimate of the device memory that a model will need, from the headers of its files, before any of it
//! is loaded.

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

/// The width of a token's live activations, in multiples of the widest layer: that layer's output before and
/// after its activation, and, each a quarter as wide, the residual, its normalised copy, queries, keys,
/// values and the attention's output. The rest is what an allocator keeps between them.
const LIVE_WIDTHS: u64 = 4;
/// The patch size in pixels where the configuration names none: the smallest that published models use.
const PATCH: u64 = 14;
const PATCH_KEY: &str = "patch_size";
/// The most rows for each column of a matrix that counts as a layer. One with more is a vocabulary, of which
/// a token reads one row.
const EMBEDDING_ROWS_PER_COLUMN: i64 = 8;
/// The side in pixels of the probe image. It is as large as most photographs are after their processors,
/// which cut at most a fixed number of crops from them.
const PROBE_SIDE: u32 = 1024;
/// The workspaces of libraries beside libtorch: on a GPU, cuBLAS keeps 32 MiB for each stream and thread, and
/// cuBLASLt another 32 MiB.
const WORKSPACE_BYTES: u64 = 64 << 20;

/// An estimate of the device memory that one copy of a model takes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The bytes of the parameters, heads included, in the number format that they are converted to.
    pub parameter_bytes: u64,
    /// The bytes reserved for activations: `max_batch` images at once, each with as many tokens as a large
    /// photograph makes, each token four times as wide as the widest layer; and the workspaces of the
    /// libraries.
    pub activation_bytes: u64,
}

impl MemoryEstimate {
    /// Returns the bytes of parameters and activations together.
    pub fn total(&self) -> u64 {
        self.parameter_bytes.saturating_add(self.activation_bytes)
    }

    /// Estimates the memory of the model that `options` describe, reading headers only. A relative snapshot
    /// path starts at `base`.
    ///
    /// # Errors
    /// Fails when a file is missing or malformed, as loading would, and when the snapshot has random weights,
    /// whose sizes no file tells.
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

/// The totals over the headers of a snapshot's files.
#[derive(Default)]
struct Layout {
    /// The name prefixes of the tensors whose matrices are in fp8.
    in_fp8: &'static [&'static str],
    bytes: u64,
    /// The width of the widest layer: the most values that one outputs for a token.
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

    /// Adds a TorchScript module, which tells nothing before it is loaded. It counts as its file's size, most
    /// of which is parameters as they were saved.
    fn add_module(&mut self, path: &Path) -> Result<(), ModelError> {
        /// The assumed width of the widest layer, which the file does not tell.
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

/// Returns the number of positions that the model computes at for one image, found by preprocessing a probe.
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

/// Returns the first patch size that the configuration names, at any depth.
fn patch_of(config: &Value) -> Option<u64> {
    let table = config.as_object()?;
    let here = table.get(PATCH_KEY).and_then(Value::as_u64).filter(|&patch| patch > 0);
    here.or_else(|| table.values().find_map(patch_of))
}

/// Returns the bytes that Linux would give without taking them from other processes (`MemAvailable`), or
/// `None` where `/proc/meminfo` does not say.
pub fn free_host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
