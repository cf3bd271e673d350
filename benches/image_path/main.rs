//! What a 12-megapixel JPEG costs before the models: decoded `exact` and `fast`, and made ready; and what `fast` does to
//! votes of the shipped ensemble.
//!
//!     make bench-image
//!     cargo bench --bench image_path -- times | votes [EVERY]

#![expect(clippy::expect_used, reason = "a bench stops at what it did not expect")]

mod picture;
mod times;
mod votes;

/// Every so many of the test archive's 6,315 photographs.
const EVERY: usize = 6;

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    concord_models::set_cpu_threads(1);
    match words[..] {
        [] => {
            times::report();
            votes::report(EVERY);
        }
        ["times"] => times::report(),
        ["votes"] => votes::report(EVERY),
        ["votes", every] => votes::report(every.parse().expect("EVERY is a number")),
        _ => eprintln!("image_path: takes nothing, `times`, or `votes [EVERY]`"),
    }
}
