//! Edits the text of an `ensemble.toml` in place, to write fitted values into a file that a person maintains.
//!
//! The text is parsed only to find the places to change, and is spliced there. So all comments, spaces and
//! the order of everything else are kept, which serializing a tree does not promise.

mod scaling;
mod stage_order;
mod table_path;
mod value;

use std::collections::BTreeMap;
use std::ops::Range;

use concord_policy::VectorScaling;
use similar::TextDiff;
use toml_edit::{Document, Item, Key, Table, Value};

use table_path::{AnyTable, TablePath};
pub(crate) use value::confidence_as_written;
use value::{NewValue, as_written};

/// The number of unchanged lines that a diff shows around the changed ones.
const CONTEXT_LINES: usize = 2;

/// A change of a task; a value that is `None` (or not in a map) is kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TaskChange {
    /// The temperature by model; it replaces the vector scaling of the model.
    pub(crate) temperatures: BTreeMap<String, f64>,
    /// The vector scaling by model; it replaces the temperature of the model.
    pub(crate) scalings: BTreeMap<String, VectorScaling>,
    /// The weight by model.
    pub(crate) weights: Option<BTreeMap<String, f64>>,
    /// The method of fusion.
    pub(crate) method: Option<String>,
    /// The present places of the stages in the file, in their new order; empty if the order is kept.
    pub(crate) order: Vec<usize>,
    /// The confidence threshold by stage, in the new order.
    pub(crate) confidences: Vec<Option<f64>>,
    /// The threshold of the correctness estimator by stage, in the new order.
    pub(crate) correctness: Vec<Option<f64>>,
    /// The file of learned networks.
    pub(crate) learned: Option<String>,
}

/// Returns `text` with the values of `change` in `[tasks.TASK]`, and nothing else changed.
///
/// # Errors
/// When `text` is not TOML or has no such task or stage, a value cannot be written, or stages cannot be
/// moved.
pub(crate) fn apply_change(text: &str, task: &str, change: &TaskChange) -> Result<String, String> {
    let text = stage_order::with_stages_in(text, task, &change.order)?;
    let text = scaling::without_replaced(&text, task, change)?;
    edit_with(&text, task, |text| plan_change(text, task, change))
}

/// Returns `text` with the head in this file for a task of `[models.MODEL]`, and nothing else changed.
///
/// # Errors
/// When `text` is not TOML or has no such model, or it cannot be written there.
pub(crate) fn set_head(text: &str, model: &str, task: &str, file: &str) -> Result<String, String> {
    edit_with(text, model, |text| plan_head(text, model, task, file))
}

/// Applies planned edits, and checks that planning again finds nothing left to change.
fn edit_with(
    text: &str,
    what: &str,
    plan: impl Fn(&str) -> Result<Vec<Edit>, String>,
) -> Result<String, String> {
    let after = splice(text, plan(text)?)?;
    // The new values are found where they are looked for if nothing is left to change.
    let left = plan(&after).map_err(|error| format!("cannot be edited in place: {error}"))?;
    if left.is_empty() {
        Ok(after)
    } else {
        Err(format!("{what:?} is laid out in a way that cannot be edited in place"))
    }
}

/// Returns the difference of two texts as a unified diff; empty if they are equal.
pub(crate) fn unified_diff(before: &str, after: &str, name: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(CONTEXT_LINES)
        .header(name, name)
        .to_string()
}

/// A replacement of a range of the text; the range is empty for an insertion.
struct Edit {
    range: Range<usize>,
    text: String,
}

/// Plans the edits that apply `change` to `text`.
fn plan_change(text: &str, task: &str, change: &TaskChange) -> Result<Vec<Edit>, String> {
    let document = parse(text)?;
    let Some(place) = TablePath::root(&document).named("tasks", task)? else {
        return Err(format!("no task {task:?}: there is no [tasks.{}]", quoted(task)));
    };

    let path = |keys: &[&str]| {
        [&place.keys[..], &keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>()].concat()
    };
    let mut fusion = Vec::new();
    if let Some(method) = &change.method {
        fusion.push(("method".to_owned(), NewValue::Text(method.clone())));
    }
    if let Some(weights) = &change.weights {
        fusion.push(("weights".to_owned(), NewValue::numbers(&path(&["fusion", "weights"]), weights)?));
    }
    let calibration = NewValue::numbers(&path(&["calibration"]), &change.temperatures)?;
    let mut wanted =
        vec![("fusion".to_owned(), NewValue::Entries(fusion)), ("calibration".to_owned(), calibration)];
    if let Some(file) = &change.learned {
        wanted.push(("learned".to_owned(), NewValue::Text(file.clone())));
    }
    let mut plan = EditPlan::of(text);
    plan.merge(&place, &wanted, Some("fusion"))?;

    let stages = place.elements("stages")?;
    let rules = [("confidence", &change.confidences), ("correctness", &change.correctness)];
    let values =
        rules.into_iter().flat_map(|(key, values)| values.iter().enumerate().map(move |it| (key, it)));
    for (key, (index, value)) in values {
        let Some(value) = *value else { continue };
        let Some(stage) = stages.get(index) else {
            return Err(format!(
                "no stage {index} in {}: there are {}, counted from 0",
                joined(&place.keys),
                stages.len()
            ));
        };
        if !(value > 0.0 && value <= 1.0) {
            let place = joined(&path(&["stages", &index.to_string(), "accept", key]));
            return Err(format!("{place} cannot be {value}: must be greater than 0 and at most 1"));
        }
        let entry = (key.to_owned(), NewValue::Number(confidence_as_written(value)));
        plan.merge(stage, &[("accept".to_owned(), NewValue::Entries(vec![entry]))], None)?;
    }
    // Last, because their sections come after those of the stages.
    plan.scalings(&place, &change.scalings)?;
    Ok(plan.edits)
}

/// Plans the edits that make `text` name this head.
fn plan_head(text: &str, model: &str, task: &str, file: &str) -> Result<Vec<Edit>, String> {
    let document = parse(text)?;
    let Some(place) = TablePath::root(&document).named("models", model)? else {
        return Err(format!("no model {model:?}: there is no [models.{}]", quoted(model)));
    };
    let head = (task.to_owned(), NewValue::Text(file.to_owned()));
    let mut plan = EditPlan::of(text);
    plan.merge(&place, &[("heads".to_owned(), NewValue::Entries(vec![head]))], None)?;
    Ok(plan.edits)
}

fn parse(text: &str) -> Result<Document<&str>, String> {
    Document::parse(text).map_err(|error| {
        let line =
            error.span().map(|span| 1 + text.bytes().take(span.start).filter(|&byte| byte == b'\n').count());
        format!(
            "not TOML{}: {}",
            line.map_or(String::new(), |line| format!(", line {line}")),
            error.message()
        )
    })
}

/// Applies edits to `text`; those at the same place are applied in their order.
fn splice(text: &str, mut edits: Vec<Edit>) -> Result<String, String> {
    edits.sort_by_key(|edit| edit.range.start);
    let mut after = String::with_capacity(text.len());
    let mut done = 0;
    for Edit { range, text: new } in edits {
        let Some(kept) = text.get(done..range.start) else { return Err("edits overlap".to_owned()) };
        after.push_str(kept);
        after.push_str(&new);
        done = range.end;
    }
    after.push_str(text.get(done..).unwrap_or_default());
    Ok(after)
}

/// The edits of a text that have been planned so far.
struct EditPlan<'a> {
    text: &'a str,
    newline: &'static str,
    edits: Vec<Edit>,
}

impl<'a> EditPlan<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, newline: if text.contains("\r\n") { "\r\n" } else { "\n" }, edits: Vec::new() }
    }

    /// Plans the edits that give the table at `place` these values. Missing keys are added after the key
    /// `after` if the table has it directly, and otherwise at the end of its direct keys.
    fn merge(
        &mut self,
        place: &TablePath<'_>,
        wanted: &[(String, NewValue)],
        after: Option<&str>,
    ) -> Result<(), String> {
        let mut new = Vec::new();
        for (key, wanted) in wanted.iter().filter(|(_, wanted)| !wanted.is_empty()) {
            match (place.table.get(key), wanted) {
                (None, _) => new.push(format!("{} = {}", place.written(key), wanted.literal())),
                (Some(_), NewValue::Entries(entries)) => {
                    if let Some(child) = place.child(key)? {
                        self.merge(&child, entries, None)?;
                    }
                }
                (Some(Item::Value(Value::Array(old))), NewValue::Numbers(new)) if old.len() == new.len() => {
                    self.replace_numbers(old, new);
                }
                (Some(item), _) => match (item.as_value(), item.span()) {
                    (Some(value), _) if wanted.equals(value) => {}
                    (Some(Value::InlineTable(_) | Value::Array(_)), _) | (None, _) | (_, None) => {
                        let keys = [&place.keys[..], std::slice::from_ref(key)].concat();
                        let (place, kind) = (joined(&keys), item.type_name());
                        return Err(format!("{place} is {kind}: must be {}", wanted.literal()));
                    }
                    (Some(_), Some(range)) => self.edits.push(Edit { range, text: wanted.literal() }),
                },
            }
        }
        if !new.is_empty() {
            self.add(place, &new, after);
        }
        Ok(())
    }

    fn add(&mut self, place: &TablePath<'_>, entries: &[String], after: Option<&str>) {
        let last =
            after.and_then(|key| place.table.last_value(Some(key))).or_else(|| place.table.last_value(None));
        match (place.table, last) {
            (AnyTable::Sections(_), Some(last)) => self.add_lines(&last, entries),
            (AnyTable::Sections(table), None) if table.is_implicit() => {
                self.add_section(last_end(table), &place.keys, entries);
            }
            (AnyTable::Sections(table), None) => self.add_lines(&table.span().unwrap_or_default(), entries),
            (AnyTable::Braces(_), Some(last)) => self.add_in_braces(last, entries),
            (AnyTable::Braces(table), None) => {
                self.add_in_empty_braces(table.span().unwrap_or_default(), entries);
            }
        }
    }

    /// Adds lines after the one in which `last` ends, with the indentation of the one in which it begins.
    fn add_lines(&mut self, last: &Range<usize>, entries: &[String]) {
        let (newline, indent) = (self.newline, indent_of(self.line_before(last.start)));
        let lines = entries.iter().map(|entry| format!("{newline}{indent}{entry}")).collect();
        self.insert(self.line_end(last.end), lines);
    }

    /// Adds a header for a table that had none, because only its subtables had headers; after these, where it
    /// does not separate a comment from its table.
    fn add_section(&mut self, end: usize, keys: &[String], entries: &[String]) {
        let newline = self.newline;
        let mut section = format!("{newline}{newline}[{}]", joined(keys));
        for entry in entries {
            section.push_str(newline);
            section.push_str(entry);
        }
        self.insert(self.line_end(end), section);
    }

    /// Adds entries after the value at `last`: on lines of their own if it has one, and otherwise before the
    /// comma that may follow it.
    fn add_in_braces(&mut self, last: Range<usize>, entries: &[String]) {
        let before = self.line_before(last.start);
        let comma = self.comma_after(last.end);
        let end = comma.map_or(last.end, |comma| comma + 1);
        let behind = self.text.get(end..self.line_end(end)).unwrap_or_default().trim();
        if !before.contains(['{', '[', ',']) && (behind.is_empty() || behind.starts_with('#')) {
            let separator = format!(",{}{}", self.newline, indent_of(before));
            let lines = format!("{}{}", separator.trim_start_matches(','), entries.join(&separator));
            if comma.is_none() {
                self.insert(last.end, ",".to_owned());
                self.insert(self.line_end(end), lines);
            } else {
                self.insert(self.line_end(end), format!("{lines},"));
            }
        } else {
            self.insert(last.end, format!(", {}", entries.join(", ")));
        }
    }

    fn add_in_empty_braces(&mut self, braces: Range<usize>, entries: &[String]) {
        let inside = braces.start + 1..braces.end.saturating_sub(1);
        let entries = format!(" {} ", entries.join(", "));
        match self.text.get(inside.clone()) {
            Some(text) if text.trim().is_empty() => self.edits.push(Edit { range: inside, text: entries }),
            _ => self.insert(inside.start, entries), // a comment
        }
    }

    fn insert(&mut self, offset: usize, text: String) {
        self.edits.push(Edit { range: offset..offset, text });
    }

    /// Returns the part of the line before `offset`.
    fn line_before(&self, offset: usize) -> &str {
        let before = self.text.get(..offset).unwrap_or_default();
        before.rsplit('\n').next().unwrap_or_default()
    }

    /// Returns the end of the line of `offset`, before the line break.
    fn line_end(&self, offset: usize) -> usize {
        let behind = self.text.get(offset..).unwrap_or_default();
        offset + behind.lines().next().map_or(0, str::len)
    }

    /// Returns the offset of a comma that follows, with only white space and comments before it.
    fn comma_after(&self, offset: usize) -> Option<usize> {
        let mut behind = self.text.get(offset..)?.trim_start();
        while behind.starts_with('#') {
            behind = behind.split_once('\n')?.1.trim_start();
        }
        behind.starts_with(',').then(|| self.text.len() - behind.len())
    }
}

/// Returns the end of the last value in a table and its subtables.
fn last_end(table: &Table) -> usize {
    let header = if table.is_implicit() { None } else { table.span() };
    let ends = table.iter().map(|(_, item)| match item {
        Item::Table(table) => last_end(table),
        Item::ArrayOfTables(tables) => tables.iter().map(last_end).max().unwrap_or_default(),
        Item::Value(value) => value.span().unwrap_or_default().end,
        Item::None => 0,
    });
    ends.chain(header.map(|span| span.end)).max().unwrap_or_default()
}

fn indent_of(line: &str) -> &str {
    line.split(|char: char| !char.is_whitespace()).next().unwrap_or_default()
}

/// Joins keys by dots, as TOML writes them.
fn joined(keys: &[String]) -> String {
    keys.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(".")
}

/// Returns a key as TOML writes it, in quotes if it needs them.
fn quoted(key: &str) -> String {
    Key::new(key).to_string()
}

#[cfg(test)]
mod tests;
