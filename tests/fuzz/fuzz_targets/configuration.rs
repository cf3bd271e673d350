//! Parses any text as `ensemble.toml`, with its last line as an environment variable. Nothing may panic, and
//! a refused text has at least one fault.

#![no_main]

use std::path::Path;

use concord::config::Ensemble;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let (file, variable) = text.rsplit_once('\n').unwrap_or((text, ""));
    let variable = variable.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    match Ensemble::parse(file, "ensemble.toml", Path::new("/"), variable) {
        Ok(ensemble) => assert!(!ensemble.models().is_empty() && !ensemble.tasks().is_empty()),
        Err(faults) => assert!(!faults.diagnostics().is_empty() && !faults.to_string().is_empty()),
    }
});
