//! Reads one section so that no fault hides another.
//!
//! serde stops at the first value of a wrong type. That value is therefore removed and the section is read
//! again, until what is left fits. Every field has a default for this reason.

use concord_actors::{Diagnostic, nearest};
use concord_policy::PathPart;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::{Segment, Track};

use super::keys::fields_of;

/// A section, as far as it could be read.
pub(super) struct Section<T> {
    /// The content; `None` if the section is not even a table.
    pub(super) content: Option<T>,
    /// Wrong types and unknown keys, with paths that start inside the section.
    faults: Vec<Diagnostic>,
    /// The paths of the values of a wrong type that were removed, in the numbering of the original.
    removed: Vec<Vec<PathPart>>,
}

/// A function that returns the keys of the table at a path inside a section; empty where any key is allowed.
pub(super) type KnownKeys = fn(&[PathPart]) -> &'static [&'static str];

/// The [`KnownKeys`] of a section without tables inside.
pub(super) fn flat_keys<T: DeserializeOwned>(path: &[PathPart]) -> &'static [&'static str] {
    if path.is_empty() { fields_of::<T>() } else { &[] }
}

impl<T: DeserializeOwned> Section<T> {
    /// Reads `value`, and records where it does not fit `T`.
    pub(super) fn read(value: Value, known_keys: KnownKeys) -> Self {
        Self::read_with(value, known_keys, &[])
    }

    /// Does the same for what is left of a section out of which these keys were taken: messages name them
    /// too.
    pub(super) fn read_with(mut value: Value, known_keys: KnownKeys, taken: &[&str]) -> Self {
        let mut section = Self { content: None, faults: Vec::new(), removed: Vec::new() };
        loop {
            let mut unknown = Vec::new();
            match read_once::<T>(&value, known_keys, &mut unknown) {
                Ok(content) => {
                    section.content = Some(content);
                    section.add_unknown(unknown, known_keys, taken);
                    return section;
                }
                Err((path, message)) => {
                    let original = section.original(&path);
                    section.faults.push(Diagnostic::new(original.clone(), message));
                    section.removed.push(original);
                    if !remove(&mut value, &path) {
                        return section;
                    }
                }
            }
        }
    }

    /// Returns whether no value had to be removed.
    pub(super) fn is_intact(&self) -> bool {
        self.removed.is_empty()
    }

    fn add_unknown(&mut self, unknown: Vec<Vec<PathPart>>, known_keys: KnownKeys, taken: &[&str]) {
        for path in unknown {
            let Some((PathPart::Key(key), table)) = path.split_last() else { continue };
            let taken = if table.is_empty() { taken } else { &[] };
            let message = unknown_key(key, &[known_keys(table), taken].concat());
            self.faults.push(Diagnostic::new(self.original(&path), message));
        }
    }

    /// Returns all faults, where `semantic` are those found in the content. A fault of a removed value, or of
    /// the table that it was removed from, is only a consequence and is left out.
    pub(super) fn faults_with(mut self, semantic: Vec<Diagnostic>) -> Vec<Diagnostic> {
        for fault in semantic {
            let path = self.original(&fault.path);
            if !self.removed.iter().any(|removed| removed.starts_with(&path) || path.starts_with(removed)) {
                self.faults.push(Diagnostic { path, ..fault });
            }
        }
        self.faults
    }

    /// Converts a path in what is left of the section into one in the section as it was written: the indices
    /// of list entries move back up by the number of entries that were removed before them.
    fn original(&self, path: &[PathPart]) -> Vec<PathPart> {
        let mut original: Vec<PathPart> = Vec::with_capacity(path.len());
        for part in path {
            let part = match part {
                PathPart::Key(_) => part.clone(),
                PathPart::Index(index) => PathPart::Index(self.original_index(&original, *index)),
            };
            original.push(part);
        }
        original
    }

    fn original_index(&self, list: &[PathPart], index: usize) -> usize {
        let mut gaps: Vec<usize> = Vec::new();
        for removed in &self.removed {
            if let Some((PathPart::Index(gap), parent)) = removed.split_last()
                && parent == list
            {
                gaps.push(*gap);
            }
        }
        gaps.sort_unstable();
        gaps.iter().fold(index, |index, gap| if *gap <= index { index + 1 } else { index })
    }
}

/// Returns the message for a key that nothing reads.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    let suggestion = nearest(key, known.iter().copied())
        .map(|meant| format!(" (did you mean {meant:?}?)"))
        .unwrap_or_default();
    let allowed =
        if known.is_empty() { String::new() } else { format!(": must be one of {}", known.join(", ")) };
    format!("unknown key{suggestion}{allowed}")
}

/// Returns the content, or the path and the message of the first wrong type; keys that nothing reads are
/// added to `unknown`.
fn read_once<T: DeserializeOwned>(
    value: &Value,
    known_keys: KnownKeys,
    unknown: &mut Vec<Vec<PathPart>>,
) -> Result<T, (Vec<PathPart>, String)> {
    if let Some(path) = list_for_table(value, &mut Vec::new(), known_keys) {
        return Err((path, in_plain_words("invalid type: sequence, expected a map")));
    }
    let mut track = Track::new();
    let mut note_unknown = |path: serde_ignored::Path<'_>| unknown.push(ignored_path(&path));
    let ignoring = serde_ignored::Deserializer::new(value, &mut note_unknown);
    T::deserialize(serde_path_to_error::Deserializer::new(ignoring, &mut track)).map_err(|error| {
        let mut path = Vec::new();
        for segment in &track.path() {
            match segment {
                Segment::Seq { index } => path.push(PathPart::Index(*index)),
                Segment::Map { key } => path.push(PathPart::Key(key.clone())),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        (path, in_plain_words(&error.to_string()))
    })
}

/// Returns the path of a list where a table belongs. serde would take the list for the table's values in
/// their order.
fn list_for_table(value: &Value, path: &mut Vec<PathPart>, known_keys: KnownKeys) -> Option<Vec<PathPart>> {
    let children: Vec<(PathPart, &Value)> = match value {
        Value::Array(_) if !known_keys(path).is_empty() => return Some(path.clone()),
        Value::Array(list) => list.iter().enumerate().map(|(index, child)| (index.into(), child)).collect(),
        Value::Object(table) => table.iter().map(|(key, child)| (key.as_str().into(), child)).collect(),
        _ => return None,
    };
    for (part, child) in children {
        path.push(part);
        let found = list_for_table(child, path, known_keys);
        path.pop();
        if found.is_some() {
            return found;
        }
    }
    None
}

fn ignored_path(path: &serde_ignored::Path<'_>) -> Vec<PathPart> {
    use serde_ignored::Path;
    let (parent, part) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, PathPart::Index(*index)),
        Path::Map { parent, key } => (parent, PathPart::Key(key.clone())),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return ignored_path(parent);
        }
    };
    let mut parts = ignored_path(parent);
    parts.push(part);
    parts
}

/// Translates serde's `invalid type: FOUND, expected WANTED` from the words of Rust into those of TOML.
fn in_plain_words(message: &str) -> String {
    let parts = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, wanted)) = parts.and_then(|parts| parts.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let found = match found.split_once(' ').unwrap_or((found, "")) {
        ("map", _) => "a table".to_owned(),
        ("sequence", _) => "a list".to_owned(),
        ("null", _) => "no value".to_owned(),
        ("integer" | "boolean", value) => value.replace('`', ""),
        ("floating", value) => value.trim_start_matches("point ").replace('`', ""),
        (_, text) => text.to_owned(),
    };
    let wanted = match wanted {
        "a map" => "a table",
        "a sequence" => "a list",
        "a string" | "path string" => "a text in quotes",
        "a boolean" => "true or false",
        "f64" => "a number",
        "u64" | "usize" => "a whole number, 0 or more",
        wanted if wanted.starts_with("struct ") => "a table",
        other => other,
    };
    wrong_type(&found, wanted)
}

/// Returns the message for a value of a wrong type.
pub(super) fn wrong_type(found: &str, wanted: &str) -> String {
    format!("{found} is of the wrong type: must be {wanted}")
}

/// Removes the value at `path`, and returns whether there was one.
fn remove(value: &mut Value, path: &[PathPart]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let mut parent = value;
    for part in parents {
        let child = match part {
            PathPart::Key(key) => parent.get_mut(key),
            PathPart::Index(index) => parent.get_mut(index),
        };
        let Some(child) = child else { return false };
        parent = child;
    }
    match (parent, last) {
        (Value::Object(table), PathPart::Key(key)) => table.shift_remove(key).is_some(),
        (Value::Array(list), PathPart::Index(index)) if *index < list.len() => {
            list.remove(*index);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Sample {
        size: u64,
        ratio: f64,
        flag: bool,
        names: Vec<String>,
        table: BTreeMap<String, f64>,
    }

    fn texts(faults: &[Diagnostic]) -> Vec<String> {
        faults.iter().map(Diagnostic::to_string).collect()
    }

    #[test]
    fn every_wrong_type_is_reported_at_its_original_path() {
        let value = json!({
            "size": -1, "ratio": "much", "flag": [], "table": { "a": true, "b": 1 },
            "names": [1, "good", 2.5, {}],
        });
        let section = Section::<Sample>::read(value, flat_keys::<Sample>);
        assert_eq!(section.content.as_ref().unwrap().names, ["good"]);
        let mut found = texts(&section.faults_with(Vec::new()));
        found.sort();
        let expected = [
            "flag: a list is of the wrong type: must be true or false",
            "names[0]: 1 is of the wrong type: must be a text in quotes",
            "names[2]: 2.5 is of the wrong type: must be a text in quotes",
            "names[3]: a table is of the wrong type: must be a text in quotes",
            "ratio: \"much\" is of the wrong type: must be a number",
            "size: -1 is of the wrong type: must be a whole number, 0 or more",
            "table.a: true is of the wrong type: must be a number",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_consequence_of_a_wrong_type_is_not_reported() {
        let section = Section::<Sample>::read(json!({ "names": [1, "good"] }), flat_keys::<Sample>);
        let semantic = ["names[0]", "names", "size"].map(|path| {
            let path = match path {
                "names[0]" => vec!["names".into(), 0.into()],
                key => vec![key.into()],
            };
            Diagnostic::new(path, "semantic")
        });
        let found = texts(&section.faults_with(semantic.into()));
        let expected = [
            "names[0]: 1 is of the wrong type: must be a text in quotes",
            // The first entry after reading was the second one before.
            "names[1]: semantic",
            "size: semantic",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_unknown_key_is_reported_with_a_suggestion() {
        let section = Section::<Sample>::read(json!({ "sise": 1, "size": 2 }), flat_keys::<Sample>);
        let expected =
            "sise: unknown key (did you mean \"size\"?): must be one of size, ratio, flag, names, table";
        assert_eq!(texts(&section.faults_with(Vec::new())), [expected]);
    }

    #[test]
    fn a_section_that_is_not_a_table_has_no_content() {
        for (value, found) in [(json!(3), "3"), (json!([1, 0.5, true]), "a list")] {
            let section = Section::<Sample>::read(value, flat_keys::<Sample>);
            assert!(section.content.is_none(), "{found}");
            let expected = format!("{found} is of the wrong type: must be a table");
            assert_eq!(texts(&section.faults_with(Vec::new())), [expected]);
        }
    }
}
