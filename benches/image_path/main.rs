//! What a 12-megapixel JPEG costs before the models: decoded `exact` and `fast`, and made ready, on a CPU and with a GPU; and what `fast`
//! does to votes of the shipped ensemble.
//!
//!     make bench-image
//!     cargo bench --bench image_path -- times | gpu | votes [EVERY]

#![expect(clippy::expect_used, reason = "a bench stops at what it did not expect")]

mod gpu;
mod picture;
mod times;
mod votes;

use std::path::Path;

/// Every so many of the test archive's 6,315 photographs.
const EVERY: usize = 12;

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // Before the first tensor, or CUDA stays off.
    let _none = concord_models::libtorch::load_cuda();
    concord_models::set_cpu_threads(1);
    match words[..] {
        [] => {
            times::report();
            gpu::report();
            votes::report(EVERY);
        }
        ["times"] => times::report(),
        ["gpu"] => gpu::report(),
        ["votes"] => votes::report(EVERY),
        ["votes", every] => votes::report(every.parse().expect("EVERY is a number")),
        _ => eprintln!("image_path: takes nothing, `times`, `gpu`, or `votes [EVERY]`"),
    }
}

/// The repository: where it was built, or where this runs.
fn root() -> &'static Path {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    if built.exists() { built } else { Path::new(".") }
}
