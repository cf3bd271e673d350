//! The file and the environment as one tree of values, and the place of each value.

use std::collections::BTreeMap;

use concord_actors::Diagnostic;
use concord_policy::PathPart;
use config::{Config, Environment, File, FileFormat, Source as _, ValueKind};
use serde_json::{Map, Number, Value};
use toml_edit::{Document, Item};

use super::error::{LocatedDiagnostic, Location};

/// The prefix of the variables that override the file.
const PREFIX: &str = "CONCORD";
/// The separator between their keys.
const SEPARATOR: &str = "__";

/// A configuration before its meaning is checked.
pub(super) struct Source {
    /// The values of the file, overridden by those of the variables.
    pub(super) values: Map<String, Value>,
    /// The faults of variables that look like overrides and cannot be used.
    pub(super) refused: Vec<LocatedDiagnostic>,
    document: Document<String>,
    /// The names of the variables that override the file, by the path of keys.
    variables: BTreeMap<Vec<PathPart>, String>,
}

impl Source {
    /// Parses `text`, and overrides it by those of `variables` that are called `CONCORD__SECTION__KEY`.
    ///
    /// # Errors
    /// Returns a fault if `text` is not TOML.
    pub(super) fn parse(
        text: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, LocatedDiagnostic> {
        let document = Document::parse(text.to_owned()).map_err(|error| LocatedDiagnostic {
            location: error.span().map_or(Location::File, |span| column_of(text, span.start)),
            diagnostic: Diagnostic::new(Vec::new(), format!("not TOML: {}", error.message())),
        })?;
        let mut source =
            Self { values: Map::new(), refused: Vec::new(), document, variables: BTreeMap::new() };
        let mut overrides = config::Map::new();
        for (name, value) in variables {
            let Some(path) = overridden_path(&name) else { continue };
            if let Some(message) = override_refusal(&path) {
                let diagnostic = Diagnostic::new(path, message);
                source.refused.push(LocatedDiagnostic { location: Location::Variable(name), diagnostic });
            } else {
                overrides.insert(name.clone(), value);
                source.variables.insert(path, name);
            }
        }
        source.values = merge(text, overrides).map_err(|error| LocatedDiagnostic {
            location: Location::File,
            diagnostic: Diagnostic::new(Vec::new(), error.to_string()),
        })?;
        Ok(source)
    }

    /// Returns the place to mend the value at `path`: the variable that set it, or else its line, or else the
    /// line of the table that lacks it.
    pub(super) fn locate(&self, path: &[PathPart]) -> Location {
        let (depth, line) = self.nearest_in_file(path);
        // The value, or a table around it, came from a variable; or the file lacks a table that variables
        // made.
        let above = |variable: &[PathPart]| path.starts_with(variable);
        let made = |variable: &[PathPart]| depth < path.len() && variable.starts_with(&path[..=depth]);
        self.variables
            .iter()
            .find(|(variable, _)| above(variable) || made(variable))
            .map_or(Location::Line(line), |(_, name)| Location::Variable(name.clone()))
    }

    /// Returns the number of parts of `path` that exist in the file, and the line of the last of them.
    fn nearest_in_file(&self, path: &[PathPart]) -> (usize, usize) {
        let mut item = self.document.as_item();
        let mut offset = 0;
        for (depth, part) in path.iter().enumerate() {
            let Some((child, start)) = child_of(item, part) else { return (depth, self.line_of(offset)) };
            item = child;
            offset = start.unwrap_or(offset);
        }
        (path.len(), self.line_of(offset))
    }

    fn line_of(&self, offset: usize) -> usize {
        line_of(self.document.raw(), offset)
    }
}

/// Returns `part` of `item`, and the offset at which it is written (of a table's key rather than its
/// content).
fn child_of<'a>(item: &'a Item, part: &PathPart) -> Option<(&'a Item, Option<usize>)> {
    match part {
        PathPart::Key(name) => {
            let (key, child) = item.as_table_like()?.get_key_value(name)?;
            Some((child, key.span().or(child.span()).map(|span| span.start)))
        }
        PathPart::Index(index) => {
            let child = item.get(index)?;
            Some((child, child.span().map(|span| span.start)))
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
}

fn column_of(text: &str, offset: usize) -> Location {
    let before = text.get(..offset).unwrap_or(text);
    let column = 1 + before.chars().rev().take_while(|&char| char != '\n').count();
    Location::Column { line: line_of(text, offset), column }
}

/// Returns `[server, max_pixels]` for `CONCORD__SERVER__MAX_PIXELS`, and `None` for variables that are no
/// overrides.
///
/// The path is in lower case, as `config` reads variables and as all keys are.
fn overridden_path(variable: &str) -> Option<Vec<PathPart>> {
    let variable = variable.to_lowercase();
    let keys = variable.strip_prefix(&PREFIX.to_lowercase())?.strip_prefix(SEPARATOR)?;
    Some(keys.split(SEPARATOR).map(PathPart::from).collect())
}

fn override_refusal(path: &[PathPart]) -> Option<&'static str> {
    let is_key = |key: &str| {
        !key.is_empty() && key.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char))
    };
    if path.iter().any(|part| !matches!(part, PathPart::Key(key) if is_key(key))) {
        // `config` would take brackets for an index.
        return Some("not the name of an override: must be CONCORD__SECTION__KEY");
    }
    match path {
        [PathPart::Key(tasks), _, PathPart::Key(stages), ..] if tasks == "tasks" && stages == "stages" => {
            Some("variables override tables, and stages are a list: must be changed in the file")
        }
        _ => None,
    }
}

/// Merges the overrides into the file; those that are numbers or booleans are read as such.
fn merge(
    text: &str,
    overrides: config::Map<String, String>,
) -> Result<Map<String, Value>, config::ConfigError> {
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .try_parsing(true)
        .source(Some(overrides));
    let merged = Config::builder()
        .add_source(File::from_str(text, FileFormat::Toml))
        .add_source(environment)
        .build()?;
    Ok(merged.collect()?.into_iter().map(|(key, value)| (key, to_json(value))).collect())
}

/// Converts a value and keeps its type: `config` itself would read `"3"` as a number, and a number as a text.
fn to_json(value: config::Value) -> Value {
    // JSON has no infinity and no NaN; as a text they are a wrong type wherever a number is expected.
    let number = |number: Option<Number>, text: String| number.map_or(Value::String(text), Value::Number);
    match value.kind {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(flag) => Value::Bool(flag),
        ValueKind::I64(integer) => Value::Number(integer.into()),
        ValueKind::U64(integer) => Value::Number(integer.into()),
        ValueKind::I128(integer) => number(Number::from_i128(integer), integer.to_string()),
        ValueKind::U128(integer) => number(Number::from_u128(integer), integer.to_string()),
        ValueKind::Float(float) => number(Number::from_f64(float), float.to_string()),
        ValueKind::String(text) => Value::String(text),
        ValueKind::Array(list) => list.into_iter().map(to_json).collect(),
        ValueKind::Table(table) => table.into_iter().map(|(key, value)| (key, to_json(value))).collect(),
    }
}
