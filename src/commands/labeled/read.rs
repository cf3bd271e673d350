//! Reads images from disk, and corrupts them if the plan says so, on all cores.

use std::path::Path;
use std::thread;

use bytes::Bytes;
use concord_actors::Digest;
use concord_models::ImageLimits;
use futures::stream::{self, StreamExt};
use tokio::task::spawn_blocking;

use super::super::arguments::read_at_most;
use crate::evaluate::{CorruptionPlan, Example};

/// The number of images that each core reads before models are asked: the cores then wait for the slowest of
/// them once, not for each in turn.
const READ_PER_CORE: usize = 4;
/// The upper limit of that (unless more images are to be in flight at once), because all of them are in
/// memory, and while models are asked about several the next ones as well: noise leaves a PNG nothing to
/// compress, and 64 photographs of 12 megapixels are then 2.3 GB.
const READ_AT_ONCE_MAX: usize = 64;

/// The size limits of an image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) body_bytes_max: u64,
    pub(super) image: ImageLimits,
}

/// The digests of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    /// The digest of the file as it was read.
    pub(super) original: Digest,
    /// The digest of the image that models are sent, which may be corrupted.
    pub(super) sent: Digest,
}

/// An image as models are sent it.
#[derive(Debug)]
pub(super) struct LoadedImage {
    pub(super) digests: Digests,
    pub(super) bytes: Bytes,
}

/// Returns how many images are read before models are asked about them, `concurrency` of them at once.
pub(super) fn read_at_once(concurrency: usize) -> usize {
    (cores() * READ_PER_CORE).min(READ_AT_ONCE_MAX).max(concurrency)
}

/// Reads these images in their order, and corrupts them by the plan; for each that fails, the error names its
/// file. Nothing of it still runs when this returns.
pub(super) async fn read_all(
    examples: &[Example],
    corruption_plan: &CorruptionPlan,
    limits: Limits,
) -> Vec<Result<LoadedImage, String>> {
    let read_elsewhere = |example: &Example| {
        let (path, corruption_plan) = (example.path.clone(), corruption_plan.clone());
        let name = path.display().to_string();
        let reading = spawn_blocking(move || read(&path, &corruption_plan, limits));
        async move {
            let read = reading.await.unwrap_or_else(|_| Err("it cannot be read or corrupted".to_owned()));
            read.map_err(|fault| format!("{name}: {fault}"))
        }
    };
    stream::iter(examples).map(read_elsewhere).buffered(cores()).collect().await
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn read(path: &Path, corruption_plan: &CorruptionPlan, limits: Limits) -> Result<LoadedImage, String> {
    let file = read_at_most(path, limits.body_bytes_max).map_err(|problem| problem.detail)?;
    let original = Digest::of(&file);
    let bytes = match corruption_plan.of(&original) {
        Some(corruption) => corruption.apply(&file, limits.image)?,
        None => file,
    };
    let sent = Digest::of(&bytes);
    Ok(LoadedImage { digests: Digests { original, sent }, bytes: Bytes::from(bytes) })
}
