//! The modules of the policy use only those before them.

use std::path::Path;

/// The modules in their order; a folder is one module.
const ORDER: [&str; 14] = [
    "probability",
    "output",
    "vote",
    "calibration",
    "fusion",
    "error",
    "section",
    "learned",
    "verdict",
    "cascade",
    "policy",
    "validate",
    "tally",
    "decide",
];

/// Every source file below a folder, with its text.
fn sources(folder: &Path) -> Vec<(String, String)> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources.extend(sources_of(&path));
        } else {
            sources.push((path.file_stem().unwrap().to_str().unwrap().to_owned(), text_of(&path)));
        }
    }
    sources
}

fn sources_of(module: &Path) -> Vec<(String, String)> {
    let name = module.file_name().unwrap().to_str().unwrap();
    sources(module).into_iter().map(|(_, text)| (name.to_owned(), text)).collect()
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_module_uses_only_those_before_it() {
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    for (module, text) in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        if module == "lib" {
            continue;
        }
        let own = place(&module).unwrap_or_else(|| panic!("{module} is not in the order"));
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("use crate::")) {
            let used: String =
                line.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
            let used_place =
                place(&used).unwrap_or_else(|| panic!("{module} uses {used}, which is not in the order"));
            assert!(used_place <= own, "{module} uses {used}, which comes after it");
        }
    }
}
