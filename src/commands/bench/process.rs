//! The memory of this process, as Linux counts it.

use std::fs;

/// What the most resident memory so far is forgotten by writing.
const RESET_PEAK: &str = "5";

/// Lets the peak begin anew at what is resident now, where the system allows that.
pub(super) fn reset_host_peak() {
    if let Err(error) = fs::write("/proc/self/clear_refs", RESET_PEAK) {
        tracing::debug!(%error, "the peak of resident memory includes what came before");
    }
}

/// The most memory that was resident (`VmHWM`), where the system tells.
pub(super) fn host_peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
