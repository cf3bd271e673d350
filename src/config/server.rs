//! `[server]`: what one process may use.

use std::ops::RangeInclusive;

use concord_actors::policy::Fault;
use serde::Deserialize;

/// Up to a gigapixel, whose RGB bytes alone take 3 GB.
const MAX_PIXELS: RangeInclusive<u64> = 1..=1_000_000_000;
/// From what the smallest real image needs, up to 1 GiB: a body is held in memory as a whole.
const MAX_BODY_BYTES: RangeInclusive<u64> = 1024..=1024 * 1024 * 1024;
/// No machine that Concord is made for has more, so a larger number is a slip.
const CPU_THREADS: RangeInclusive<u64> = 0..=1024;

/// `[server]` in `ensemble.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerSection {
    /// The most pixels that an image may have, told from its header before it is decoded.
    pub max_pixels: u64,
    /// The most bytes that an encoded image may have.
    pub max_body_bytes: u64,
    /// How many CPU threads one operation of a model may use; 0: one for each core. Small models are faster
    /// with 1: threads that wait for each other at every operation cost more than they bring, and many times
    /// more when other processes want the cores too.
    pub cpu_threads: usize,
}

impl Default for ServerSection {
    fn default() -> Self {
        // 64 megapixels are above what phones take: 192 MB when decoded, and 1.3 GB at the peak of a process that
        // resizes one for DINOv3, in fp32 as the reference does.
        Self { max_pixels: 64_000_000, max_body_bytes: 32 * 1024 * 1024, cpu_threads: 0 }
    }
}

impl ServerSection {
    /// The fields that are out of their range.
    pub(super) fn check(&self) -> Vec<Fault> {
        let fields = [
            ("max_pixels", self.max_pixels, MAX_PIXELS),
            ("max_body_bytes", self.max_body_bytes, MAX_BODY_BYTES),
            ("cpu_threads", self.cpu_threads as u64, CPU_THREADS),
        ];
        let mut faults = Vec::new();
        for (key, value, range) in fields {
            if !range.contains(&value) {
                let message =
                    format!("{value} is out of range: must be from {} to {}", range.start(), range.end());
                faults.push(Fault::new(vec![key.into()], message));
            }
        }
        faults
    }
}
