//! What the tests of this crate share.

use std::io::Write;

use concord_models::libtorch::cuda_devices;

/// Returns the number of GPUs. Where there is none it says that the test, or its part for GPUs, is left out:
/// past the capture of a test's output, so that it is seen.
pub(crate) fn gpus() -> usize {
    let gpus = cuda_devices();
    if gpus == 0 {
        let thread = std::thread::current();
        let line = format!("LEFT OUT {}: there is no GPU here\n", thread.name().unwrap_or_default());
        // Perhaps nobody reads it.
        let _closed = std::io::stderr().write_all(line.as_bytes());
    }
    gpus
}
