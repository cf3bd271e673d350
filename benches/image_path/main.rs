//! Measures the cost of a 12-megapixel JPEG before the models: decoding it as `exact` and `fast`, and
//! preprocessing it on a CPU and on a GPU; and the effect of `fast` on the votes of the shipped ensemble.
//!
//!     make bench-image
//!     cargo bench --bench image_path -- times | gpu | votes [STRIDE]

#![expect(clippy::expect_used, reason = "a bench stops at what it did not expect")]

mod gpu;
mod photographs;
mod times;
mod votes;

use std::path::Path;

/// The default stride through the test archive's 6,315 photographs.
const STRIDE: usize = 12;

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Before the first tensor: otherwise CUDA stays off.
    let _none = concord_models::libtorch::load_cuda();
    concord_models::set_cpu_threads(1);
    match words[..] {
        [] => {
            times::report();
            gpu::report();
            votes::report(STRIDE);
        }
        ["times"] => times::report(),
        ["gpu"] => gpu::report(),
        ["votes"] => votes::report(STRIDE),
        ["votes", stride] => votes::report(stride.parse().expect("STRIDE is a number")),
        _ => eprintln!("image_path: takes nothing, `times`, `gpu`, or `votes [STRIDE]`"),
    }
}

/// Returns the repository: where this was built, or else where it runs.
fn root() -> &'static Path {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built.exists() { built } else { Path::new(".") }
}
