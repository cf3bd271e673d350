//! The order of layers in each crate: no module imports one of a layer above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A crate's layers, the lowest first.
///
/// A layer is a list of units that do not import each other. A unit is a folder, or a file without its
/// extension, relative to the crate's `src`. `folder/*` stands for every unit in a folder that is not named
/// elsewhere. `a + b` is a unit of several that import each other in a circle, which is still to be cut.
struct Crate {
    src: &'static str,
    layers: &'static [&'static [&'static str]],
}

const CRATES: [Crate; 4] = [
    Crate {
        src: "policy/src",
        layers: &[
            &["error", "probability", "section"],
            &["calibration", "fusion", "output"],
            &["vote"],
            &["learned"],
            &["verdict"],
            &["cascade"],
            &["policy"],
            &["fits", "tally", "validate"],
            &["decide"],
        ],
    },
    Crate {
        src: "models/src",
        layers: &[
            &["libtorch"],
            &["error", "task", "output"],
            &["runtime"],
            &["kernels", "snapshot"],
            &["image", "nn"],
            &["generation", "head", "inspect", "options"],
            &["model"],
            &["architectures/architecture"],
            &["architectures/*"],
            &["architectures/registry"],
            &["architectures/memory", "parity"],
        ],
    },
    Crate {
        src: "actors/src",
        layers: &[
            &[
                "breaker",
                "deadline",
                "diagnostic",
                "digest",
                "fatal",
                "log_limit",
                "metrics",
                "pool",
                "startup",
                "trace",
            ],
            &["capacity", "load_error", "pixel_budget", "placement", "vote_reply"],
            &["vote_request"],
            &["cache"],
            &["cloud", "model"],
            &["client", "keys", "loading"],
            &["plan"],
            &["router"],
            &["engine"],
        ],
    },
    Crate {
        src: "src",
        layers: &[
            &["inputs", "problem", "table", "telemetry"],
            &["config", "evaluate", "response"],
            &["fit", "http"],
            &["head", "serve"],
            &["commands"],
        ],
    },
];

/// The most files at the top of `models/src`: with more of them, the layers are not visible.
const TOP_FILES_MAX: usize = 8;

#[test]
fn no_import_runs_up() {
    let mut report = String::new();
    for one in &CRATES {
        let sources = Sources::read(Path::new(one.src));
        for violation in sources.violations(one.layers) {
            writeln!(report, "{}/{violation}", one.src).unwrap();
        }
    }
    assert!(report.is_empty(), "imports against the order of tests/layers.rs:\n{report}");
}

#[test]
fn every_folder_says_what_it_is() {
    let mut undocumented = Vec::new();
    for one in &CRATES {
        for (module, text) in &Sources::read(Path::new(one.src)).files {
            let opens_folder = module.ends_with("/mod") || module == "lib";
            if opens_folder && !text.starts_with("//! ") {
                undocumented.push(format!("{}/{module}.rs", one.src));
            }
        }
    }
    assert!(undocumented.is_empty(), "must begin with a sentence after `//!`: {undocumented:?}");
}

#[test]
fn the_top_of_models_is_short() {
    let top = fs::read_dir("models/src").unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file());
    let count = top.count();
    assert!(
        count <= TOP_FILES_MAX,
        "{count} files in models/src: at most {TOP_FILES_MAX}, put one into a folder"
    );
}

/// The source files of a crate by their module (`nn/mod` for `nn/mod.rs`), without those of tests.
struct Sources {
    files: BTreeMap<String, String>,
    /// Every module and folder (`nn`, `nn/blocks`).
    modules: BTreeSet<String>,
    /// The paths of the names that `lib.rs` exports.
    exports: BTreeMap<String, Vec<String>>,
}

impl Sources {
    fn read(src: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(src.join(&folder)).unwrap() {
                let name = folder.join(entry.as_ref().unwrap().file_name());
                if entry.unwrap().path().is_dir() {
                    folders.push(name);
                } else if name.extension().is_some_and(|extension| extension == "rs") {
                    let module = name.with_extension("").display().to_string();
                    files.insert(module, fs::read_to_string(src.join(name)).unwrap());
                }
            }
        }
        Self::of(files)
    }

    fn of(mut files: BTreeMap<String, String>) -> Self {
        // Tests may look at any layer.
        files.retain(|module, _| !module.split('/').any(|part| part == "tests"));
        let mut modules = BTreeSet::new();
        for module in files.keys().filter(|module| !is_top(module)) {
            let parts = module_path(module);
            modules.extend((1..=parts.len()).map(|length| parts[..length].join("/")));
        }
        let mut exports = BTreeMap::new();
        for (_, path) in files.get("lib").map(|text| paths(&code_of(text), &["use "])).unwrap_or_default() {
            let path: Vec<String> = path.into_iter().filter(|part| part != "crate").collect();
            if let [first, .., last] = &path[..]
                && modules.contains(first)
            {
                exports.insert(last.clone(), path);
            }
        }
        Self { files, modules, exports }
    }

    /// Returns the imports against the order of the layers, a line for each.
    fn violations(&self, layers: &[&[&str]]) -> Vec<String> {
        let mut violations = Vec::new();
        for (module, text) in &self.files {
            let from = module_path(module);
            // A file above several units (`lib.rs`, or the `mod.rs` over a folder's own units) is above their
            // layers.
            if is_top(module) || holds_units(layers, &from.join("/")) {
                continue;
            }
            let Some((from_layer, from_unit)) = layer_of(layers, &from.join("/")) else {
                violations.push(format!("{module}.rs: is of no layer: declare it in tests/layers.rs"));
                continue;
            };
            for (line, path) in paths(&code_of(text), &["crate::", "super::", "self::"]) {
                let Some(target) = self.target(&from, &path) else { continue };
                let Some((to_layer, to_unit)) = layer_of(layers, &target) else { continue };
                if from_unit != to_unit && from_layer <= to_layer {
                    violations.push(format!(
                        "{module}.rs:{line}: {} is of layer {to_layer} ({to_unit}), which layer {from_layer} \
                         ({from_unit}) must not import",
                        path.join("::")
                    ));
                }
            }
        }
        violations
    }

    /// Returns the module that a path in the module `from` leads to.
    fn target(&self, from: &[String], path: &[String]) -> Option<String> {
        let mut start = from.to_vec();
        let mut rest = path;
        while let [first, others @ ..] = rest {
            match first.as_str() {
                "crate" => start.clear(),
                "super" => drop(start.pop()),
                "self" => {}
                _ => break,
            }
            rest = others;
        }
        let mut full: Vec<String> = start.into_iter().chain(rest.iter().cloned()).collect();
        if let Some(exported) = full.first().and_then(|name| self.exports.get(name))
            && !self.modules.contains(&full[0])
        {
            full.clone_from(exported);
        }
        (1..=full.len()).rev().map(|length| full[..length].join("/")).find(|name| self.modules.contains(name))
    }
}

fn is_top(module: &str) -> bool {
    matches!(module, "lib" | "main")
}

fn module_path(module: &str) -> Vec<String> {
    let name = if is_top(module) { "" } else { module.strip_suffix("/mod").unwrap_or(module) };
    name.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

/// Returns the layer, counted from 1, and the unit that a module is in.
fn layer_of(layers: &[&[&str]], module: &str) -> Option<(usize, String)> {
    let units = || {
        layers.iter().enumerate().flat_map(|(index, layer)| layer.iter().map(move |unit| (index + 1, unit)))
    };
    let is_in = |part: &str| module == part || module.starts_with(&format!("{part}/"));
    if let Some((layer, unit)) = units().find(|(_, unit)| unit.split(" + ").any(is_in)) {
        return Some((layer, (*unit).to_owned()));
    }
    units().find_map(|(layer, unit)| {
        let folder = unit.strip_suffix('*')?;
        let name = module.strip_prefix(folder)?.split('/').next()?;
        Some((layer, format!("{folder}{name}")))
    })
}

/// Returns whether units are declared within this folder.
fn holds_units(layers: &[&[&str]], folder: &str) -> bool {
    let within = format!("{folder}/");
    layers
        .iter()
        .flat_map(|layer| *layer)
        .flat_map(|unit| unit.split(" + "))
        .any(|part| part.starts_with(&within))
}

/// Returns a file's text without comments and without the tests at its end; line numbers stay the same.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().map_or("", |next| next.trim_end());
        if line.trim() == "#[cfg(test)]" && next.contains("mod ") && next.ends_with('{') {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// Returns every path in `code` that begins with one of `starts`, with its line; groups in braces are
/// expanded.
fn paths(code: &str, starts: &[&str]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for start in starts {
        for (place, _) in code.match_indices(start) {
            let before = code[..place].chars().next_back().unwrap_or(' ');
            if before.is_alphanumeric() || "_$:".contains(before) {
                continue;
            }
            let line = code[..place].matches('\n').count() + 1;
            let path = &code[if start.ends_with(' ') { place + start.len() } else { place }..];
            found.extend(spread(path).0.into_iter().map(|path| (line, path)));
        }
    }
    found
}

/// Returns the paths of a `use` tree at the beginning of `text`, and the rest of the text.
fn spread(text: &str) -> (Vec<Vec<String>>, &str) {
    if let Some(mut rest) = text.strip_prefix('{') {
        let mut all = Vec::new();
        loop {
            rest = rest.trim_start_matches([' ', '\n', ',']);
            if rest.is_empty() || rest.starts_with('}') {
                return (all, rest.strip_prefix('}').unwrap_or(rest));
            }
            let (paths, after) = spread(rest);
            all.extend(paths);
            // `as NAME`.
            rest = &after[after.find([',', '}']).unwrap_or(after.len())..];
        }
    }
    let end = text.find(|char: char| !char.is_alphanumeric() && char != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let (mut paths, rest) = match rest.strip_prefix("::") {
        Some(rest) => spread(rest),
        None => (vec![Vec::new()], rest),
    };
    if !name.is_empty() {
        paths.iter_mut().for_each(|path| path.insert(0, name.to_owned()));
    }
    (paths, rest)
}

const ORDER: &[&[&str]] = &[&["low"], &["middle", "aside"], &["top/*"], &["top/list"], &["high + loop"]];

fn found(files: &[(&str, &str)]) -> Vec<String> {
    let known =
        ["lib", "low/mod", "middle", "aside", "top/mod", "top/a", "top/b/mod", "top/list", "high", "loop"];
    let mut all: BTreeMap<String, String> = known.map(|module| (module.to_owned(), String::new())).into();
    all.extend(files.iter().map(|(module, text)| ((*module).to_owned(), (*text).to_owned())));
    Sources::of(all).violations(ORDER)
}

#[test]
fn imports_that_run_down_or_stay_are_fine() {
    for (module, text) in [
        ("middle", "use crate::low::Thing;"),
        ("low/deep/file", "use crate::low::other::Thing; use super::file;"),
        ("high", "use crate::{middle::X, low, top::{a, b as c}};"),
        ("top/list", "use super::{a, b};"),
        ("loop", "use crate::high::X;"),
        ("lib", "use low::X; pub use high::Y;"),
        ("low/file", "// use crate::high::X;\nfn f() {}"),
        ("low/file", "#[cfg(test)]\nmod tests {\n    use crate::high::X;\n}"),
        ("low/tests", "use crate::high::X;"),
        ("low/file", "macro!($crate::high::X); let x = other_crate::high::X;"),
    ] {
        assert_eq!(found(&[(module, text)]), [""; 0], "{text}");
    }
}

#[test]
fn an_import_that_runs_up_is_found_with_its_line_and_both_layers() {
    let cases = [
        (
            "low/mod",
            "\nuse crate::middle::X;",
            "low/mod.rs:2: crate::middle::X is of layer 2 (middle), which layer 1 (low)",
        ),
        (
            "low/file",
            "use std::fs;\nuse crate::{\n    low::Y,\n    high::{X, Z},\n};",
            "low/file.rs:2: crate::high::X",
        ),
        (
            "low/file",
            "fn f() -> crate::loop::X {}",
            "low/file.rs:1: crate::loop::X is of layer 5 (high + loop)",
        ),
        ("low/file", "use super::super::middle;", "low/file.rs:1: super::super::middle is of layer 2"),
        (
            "middle",
            "use crate::aside::X;",
            "middle.rs:1: crate::aside::X is of layer 2 (aside), which layer 2 (middle)",
        ),
        ("top/a", "use super::b::X;", "top/a.rs:1: super::b::X is of layer 3 (top/b), which layer 3 (top/a)"),
        ("top/b/file", "use crate::top::list;", "top/b/file.rs:1: crate::top::list is of layer 4 (top/list)"),
        ("top/a", "use self::super::super::high;", "top/a.rs:1: self::super::super::high"),
    ];
    for (module, text, expected) in cases {
        let found = found(&[(module, text)]);
        assert!(found.first().is_some_and(|line| line.starts_with(expected)), "{text}: {found:?}");
    }
}

#[test]
fn a_name_that_the_crate_exports_is_followed_to_its_file() {
    let lib = ("lib", "mod high;\npub use high::{Engine, Other as Another};\npub use serde::Serialize;");
    let up = found(&[lib, ("low/file", "use crate::{Engine, Unknown};")]);
    assert_eq!(up.len(), 1);
    assert!(up[0].starts_with("low/file.rs:1: crate::Engine is of layer 5 (high + loop)"), "{up:?}");
}

#[test]
fn a_file_of_no_layer_is_found() {
    let undeclared = ["new.rs: is of no layer: declare it in tests/layers.rs"];
    assert_eq!(found(&[("new", "")]), undeclared);
    assert_eq!(found(&[("new/file", "")]), ["new/file.rs: is of no layer: declare it in tests/layers.rs"]);
}
