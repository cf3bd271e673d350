//! The memory of this process, as Linux counts it.

use std::fs;

/// The value that resets the peak of resident memory when it is written to `clear_refs`.
const RESET_PEAK: &str = "5";

/// Resets the peak to the memory that is resident now, where the system allows that.
pub(super) fn reset_host_peak() {
    if let Err(error) = fs::write("/proc/self/clear_refs", RESET_PEAK) {
        tracing::debug!(%error, "the peak of resident memory was not reset and includes earlier models");
    }
}

/// Returns the peak of resident memory (`VmHWM`) in bytes, where the system reports it.
pub(super) fn host_peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
