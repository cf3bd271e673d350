//! Reads and writes head files: each training adds a new one beside the snapshot, with its provenance in the
//! metadata.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind};

use super::Head;
use crate::ModelError;
use crate::snapshot::weights::SafetensorsFile;

/// The most heads of one task that may lie beside a snapshot; more would be a leak rather than a history.
const VERSIONS_MAX: usize = 10_000;
/// The metadata entry that holds the dropout rate with which a head was trained.
pub(super) const DROPOUT: &str = "dropout";

/// The metadata entry that holds the digest of the snapshot on whose features a head was trained.
pub const SNAPSHOT_NOTE: &str = "snapshot";

/// Returns the digest of the snapshot on whose features a head was trained, as the head's file names it, or
/// `None` where it names none.
///
/// # Errors
/// Fails when the file cannot be read, or is not a head.
pub fn head_snapshot(folder: &Path, head: &Path) -> Result<Option<String>, ModelError> {
    let file = SafetensorsFile::open(&folder.join(head))?;
    Ok(file.note(SNAPSHOT_NOTE).map(str::to_owned))
}

/// Returns the dropout rate that a head's file names, at least 0 and less than 1, or 0 where it names none.
///
/// # Errors
/// Fails when the rate is out of range or not a number, or the file is not a head.
pub(super) fn dropout_of(path: &Path) -> Result<f64, ModelError> {
    let file = SafetensorsFile::open(path)?;
    let Some(text) = file.note(DROPOUT) else { return Ok(0.0) };
    let rate = text.parse().ok().filter(|rate| (0.0..1.0).contains(rate));
    rate.ok_or_else(|| {
        let message = format!("its metadata names the dropout {text:?}: must be from 0 to less than 1");
        ModelError::malformed(path, message)
    })
}

/// Checks that new heads can be written beside a snapshot, before they are trained.
///
/// # Errors
/// Fails when they cannot.
pub fn check_head_folder(folder: &Path) -> Result<(), ModelError> {
    tempfile::NamedTempFile::new_in(folder).map(drop).map_err(|source| ModelError::file(folder, source))
}

/// Writes `head.TASK.vN.safetensors`, where N is one more than the highest existing version, and returns the
/// file's name.
///
/// # Errors
/// Fails when the folder cannot be written to.
pub(super) fn write_new(
    head: &Head,
    folder: &Path,
    task: &str,
    notes: &BTreeMap<String, String>,
) -> Result<PathBuf, ModelError> {
    let file_error = |source| ModelError::file(folder, source);
    // Written under a temporary name first, because a server may read the folder at any time.
    let mut written = tempfile::NamedTempFile::new_in(folder).map_err(file_error)?;
    written.write_all(&serialized(head, notes)?).map_err(file_error)?;
    written.as_file().sync_all().map_err(file_error)?;
    // The file gets the snapshot's permissions; a temporary file is readable by its owner alone.
    let permissions = fs::metadata(folder.join("config.json")).map_err(file_error)?.permissions();
    written.as_file().set_permissions(permissions).map_err(file_error)?;
    for version in next_version(folder, task).map_err(file_error)?..VERSIONS_MAX {
        let name = PathBuf::from(format!("head.{task}.v{version}.safetensors"));
        match written.persist_noclobber(folder.join(&name)) {
            Ok(_) => return Ok(name),
            // Another training took this version first.
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => written = error.file,
            Err(error) => return Err(file_error(error.error)),
        }
    }
    let message = format!("has heads up to version {VERSIONS_MAX} for task {task}: remove old ones");
    Err(ModelError::malformed(folder, message))
}

/// Returns one more than the highest existing version, so that the number of a removed version is not reused
/// while a later one remains.
fn next_version(folder: &Path, task: &str) -> std::io::Result<usize> {
    let prefix = format!("head.{task}.v");
    let mut highest = 0;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let version = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".safetensors"));
        highest = highest.max(version.and_then(|version| version.parse().ok()).unwrap_or(0));
    }
    Ok(highest + 1)
}

fn serialized(head: &Head, notes: &BTreeMap<String, String>) -> Result<Vec<u8>, ModelError> {
    let mut tensors = Vec::new();
    for (name, tensor) in head.tensors() {
        let values = tensor.f_to_device_(Device::Cpu, Kind::Float, false, false)?.f_contiguous()?;
        let shape = values.size().iter().map(|&side| usize::try_from(side).unwrap_or(0)).collect();
        let values = Vec::<f32>::try_from(&values.f_flatten(0, -1)?)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((name, shape, bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes): &(String, Vec<usize>, Vec<u8>)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let mut metadata: HashMap<String, String> = notes.clone().into_iter().collect();
    metadata.insert("format".to_owned(), "pt".to_owned());
    let bytes = views.and_then(|views| safetensors::serialize(views, Some(metadata)));
    bytes.map_err(|error| ModelError::Unsupported(format!("the head cannot be written: {error}")))
}
