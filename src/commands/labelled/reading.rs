//! Pictures from the disk, made worse where that is wanted, on all cores.

use std::path::Path;
use std::thread;

use bytes::Bytes;
use concord_actors::Digest;
use futures::stream::{self, StreamExt};
use tokio::task::spawn_blocking;

use super::super::arguments::read_at_most;
use crate::evaluate::{Example, Worsening};

/// So many pictures are read for each core before models are asked: the cores wait for the slowest of them once, not for
/// each in turn.
const READ_PER_CORE: usize = 4;
/// But no more than this, unless more are to be under way at once, because all are in memory, and while models are asked about
/// several the next as well: noise leaves a PNG nothing to compress, and 64 photographs of 12 megapixels are then 2.3 GB.
const READ_AT_ONCE_MAX: usize = 64;

/// How large pictures may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) body_bytes_max: u64,
    pub(super) pixels_max: u64,
}

/// Of one picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    /// As it was read.
    pub(super) original: Digest,
    /// As models are asked about it: made worse, perhaps.
    pub(super) asked: Digest,
}

/// A picture as models are asked about it.
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) digests: Digests,
    pub(super) bytes: Bytes,
}

/// How many pictures are read before models are asked about them, `concurrency` of them at once.
pub(super) fn read_at_once(concurrency: usize) -> usize {
    (cores() * READ_PER_CORE).min(READ_AT_ONCE_MAX).max(concurrency)
}

/// These pictures in their order, or why there is none. Nothing of it still runs when this returns.
pub(super) async fn read_all(
    examples: &[Example],
    worsening: &Worsening,
    limits: Limits,
) -> Vec<Result<Picture, String>> {
    let read_elsewhere = |example: &Example| {
        let (path, worsening) = (example.path.clone(), worsening.clone());
        let told = path.display().to_string();
        let reading = spawn_blocking(move || read(&path, &worsening, limits));
        async move {
            let read = reading.await.unwrap_or_else(|_| Err("it cannot be read or made worse".to_owned()));
            read.map_err(|fault| format!("{told}: {fault}"))
        }
    };
    stream::iter(examples).map(read_elsewhere).buffered(cores()).collect().await
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn read(path: &Path, worsening: &Worsening, limits: Limits) -> Result<Picture, String> {
    let file = read_at_most(path, limits.body_bytes_max).map_err(|problem| problem.detail)?;
    let original = Digest::of(&file);
    let bytes = match worsening.of(&original) {
        Some(corruption) => corruption.apply(&file, limits.pixels_max)?,
        None => file,
    };
    let asked = Digest::of(&bytes);
    Ok(Picture { digests: Digests { original, asked }, bytes: Bytes::from(bytes) })
}
