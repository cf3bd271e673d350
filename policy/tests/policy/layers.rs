//! Tests that the modules of the policy use only those before them.

use std::path::Path;

/// The modules in their order; a folder is one module.
const ORDER: [&str; 15] = [
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
    "fits",
    "validate",
    "tally",
    "decide",
];

#[test]
fn a_module_uses_only_those_before_it() {
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let module = path.strip_prefix(&source).unwrap().with_extension("");
            let module = module.iter().next().unwrap().to_str().unwrap();
            if module == "lib" {
                continue;
            }
            let own = place(module).unwrap_or_else(|| panic!("{module} is not in the order"));
            let text = std::fs::read_to_string(&path).unwrap();
            for line in text.lines().filter_map(|line| line.trim().strip_prefix("use crate::")) {
                let end = line.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap();
                let used = &line[..end];
                let used_place =
                    place(used).unwrap_or_else(|| panic!("{module} uses {used}, which is not in the order"));
                assert!(used_place <= own, "{module} uses {used}, which comes after it");
            }
        }
    }
}
