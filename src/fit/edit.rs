//! Fitted values, written into the text of an `ensemble.toml` that a person wrote and keeps.
//!
//! The text is parsed only to find the places; what changes is cut out of it and put into it there. So every comment,
//! every space and the order of everything else stay as they are, which a tree that is written anew does not promise.

mod order;
mod place;
mod scaling;
mod wanted;

use std::collections::BTreeMap;
use std::ops::Range;

use concord_policy::VectorScaling;
use similar::TextDiff;
use toml_edit::{Document, Item, Key, Table, Value};

use place::{AnyTable, Place};
pub(crate) use wanted::confidence_as_written;
use wanted::{Wanted, as_written};

/// Unchanged lines that a difference shows around the changed ones.
const CONTEXT_LINES: usize = 2;

/// What is to be changed of a task; what is `None` (or not in a map) stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TaskChange {
    /// By model; its vector scaling goes.
    pub(crate) temperatures: BTreeMap<String, f64>,
    /// By model; its temperature goes.
    pub(crate) scalings: BTreeMap<String, VectorScaling>,
    /// By model.
    pub(crate) weights: Option<BTreeMap<String, f64>>,
    /// How votes are fused.
    pub(crate) method: Option<String>,
    /// The place that each stage has in the file now, in the order in which they shall be; empty where they stay.
    pub(crate) order: Vec<usize>,
    /// By stage, in the order in which they shall be.
    pub(crate) confidences: Vec<Option<f64>>,
    /// The same: what gates must say.
    pub(crate) gates: Vec<Option<f64>>,
    /// The file of what was learned.
    pub(crate) learned: Option<String>,
}

/// `text` with the values of `change` in `[tasks.TASK]`, and nothing else of it changed.
///
/// # Errors
/// When `text` is not TOML or has no such task or stage, a value cannot be written, or stages cannot be moved.
pub(crate) fn edited(text: &str, task: &str, change: &TaskChange) -> Result<String, String> {
    let text = order::with_stages_in(text, task, &change.order)?;
    let text = scaling::without_replaced(&text, task, change)?;
    edited_by(&text, task, |text| planned(text, task, change))
}

/// `text` with the head in this file for a task of `[models.MODEL]`, and nothing else of it changed.
///
/// # Errors
/// When `text` is not TOML or has no such model, or it cannot be written there.
pub(crate) fn with_head(text: &str, model: &str, task: &str, file: &str) -> Result<String, String> {
    edited_by(text, model, |text| planned_head(text, model, task, file))
}

fn edited_by(
    text: &str,
    what: &str,
    planned: impl Fn(&str) -> Result<Vec<Edit>, String>,
) -> Result<String, String> {
    let after = spliced(text, planned(text)?)?;
    // What was written is there, and where it is looked for: then there is nothing left to change.
    let left = planned(&after).map_err(|error| format!("cannot be edited in place: {error}"))?;
    if left.is_empty() {
        Ok(after)
    } else {
        Err(format!("{what:?} is laid out in a way that cannot be edited in place"))
    }
}

/// What a person would have to change to get from one text to the other, as `diff -u` says it; empty where they are equal.
pub(crate) fn difference(before: &str, after: &str, name: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(CONTEXT_LINES)
        .header(name, name)
        .to_string()
}

/// Text that comes in the place of a range of the old one, which is empty where something is added.
struct Edit {
    range: Range<usize>,
    text: String,
}

/// The edits that make `text` say what `change` says.
fn planned(text: &str, task: &str, change: &TaskChange) -> Result<Vec<Edit>, String> {
    let document = parsed(text)?;
    let Some(place) = Place::root(&document).named("tasks", task)? else {
        return Err(format!("no task {task:?}: there is no [tasks.{}]", quoted(task)));
    };

    let path = |keys: &[&str]| {
        [&place.keys[..], &keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>()].concat()
    };
    let mut fusion = Vec::new();
    if let Some(method) = &change.method {
        fusion.push(("method".to_owned(), Wanted::Text(method.clone())));
    }
    if let Some(weights) = &change.weights {
        fusion.push(("weights".to_owned(), Wanted::numbers(&path(&["fusion", "weights"]), weights)?));
    }
    let calibration = Wanted::numbers(&path(&["calibration"]), &change.temperatures)?;
    let mut wanted =
        vec![("fusion".to_owned(), Wanted::Entries(fusion)), ("calibration".to_owned(), calibration)];
    if let Some(file) = &change.learned {
        wanted.push(("learned".to_owned(), Wanted::Text(file.clone())));
    }
    let mut plan = Plan::of(text);
    plan.merge(&place, &wanted, Some("fusion"))?;

    let stages = place.elements("stages")?;
    let rules = [("confidence", &change.confidences), ("gate", &change.gates)];
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
        let entry = (key.to_owned(), Wanted::Number(confidence_as_written(value)));
        plan.merge(stage, &[("accept".to_owned(), Wanted::Entries(vec![entry]))], None)?;
    }
    // Last, for they come behind the stages.
    plan.scalings(&place, &change.scalings)?;
    Ok(plan.edits)
}

/// The edits that make `text` name this head.
fn planned_head(text: &str, model: &str, task: &str, file: &str) -> Result<Vec<Edit>, String> {
    let document = parsed(text)?;
    let Some(place) = Place::root(&document).named("models", model)? else {
        return Err(format!("no model {model:?}: there is no [models.{}]", quoted(model)));
    };
    let head = (task.to_owned(), Wanted::Text(file.to_owned()));
    let mut plan = Plan::of(text);
    plan.merge(&place, &[("heads".to_owned(), Wanted::Entries(vec![head]))], None)?;
    Ok(plan.edits)
}

fn parsed(text: &str) -> Result<Document<&str>, String> {
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

/// `text` after the edits; those at the same place in their order.
fn spliced(text: &str, mut edits: Vec<Edit>) -> Result<String, String> {
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

/// The edits of a text so far.
struct Plan<'a> {
    text: &'a str,
    newline: &'static str,
    edits: Vec<Edit>,
}

impl<'a> Plan<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, newline: if text.contains("\r\n") { "\r\n" } else { "\n" }, edits: Vec::new() }
    }

    /// Makes the table at `place` say what is wanted. What it lacks is added after the key `after`, where it has that one
    /// itself, otherwise at the end of what it has itself.
    fn merge(
        &mut self,
        place: &Place<'_>,
        wanted: &[(String, Wanted)],
        after: Option<&str>,
    ) -> Result<(), String> {
        let mut new = Vec::new();
        for (key, wanted) in wanted.iter().filter(|(_, wanted)| !wanted.is_nothing()) {
            match (place.table.get(key), wanted) {
                (None, _) => new.push(format!("{} = {}", place.written(key), wanted.literal())),
                (Some(_), Wanted::Entries(entries)) => {
                    if let Some(child) = place.child(key)? {
                        self.merge(&child, entries, None)?;
                    }
                }
                (Some(Item::Value(Value::Array(old))), Wanted::Numbers(new)) if old.len() == new.len() => {
                    self.replace_numbers(old, new);
                }
                (Some(item), _) => match (item.as_value(), item.span()) {
                    (Some(value), _) if wanted.is_said_by(value) => {}
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

    fn add(&mut self, place: &Place<'_>, entries: &[String], after: Option<&str>) {
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

    /// Lines after the one in which `last` ends, as far to the right as the one in which it begins.
    fn add_lines(&mut self, last: &Range<usize>, entries: &[String]) {
        let (newline, indent) = (self.newline, indent_of(self.line_before(last.start)));
        let lines = entries.iter().map(|entry| format!("{newline}{indent}{entry}")).collect();
        self.insert(self.line_end(last.end), lines);
    }

    /// The header of a table that had none, because only tables in it had one; after them, where no comment is theirs.
    fn add_section(&mut self, end: usize, keys: &[String], entries: &[String]) {
        let newline = self.newline;
        let mut section = format!("{newline}{newline}[{}]", joined(keys));
        for entry in entries {
            section.push_str(newline);
            section.push_str(entry);
        }
        self.insert(self.line_end(end), section);
    }

    /// After the value at `last`: in lines of their own where it has one, before the comma that may follow it otherwise.
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

    /// What stands before `offset` in its line.
    fn line_before(&self, offset: usize) -> &str {
        let before = self.text.get(..offset).unwrap_or_default();
        before.rsplit('\n').next().unwrap_or_default()
    }

    /// Where the line of `offset` ends, before what ends it.
    fn line_end(&self, offset: usize) -> usize {
        let behind = self.text.get(offset..).unwrap_or_default();
        offset + behind.lines().next().map_or(0, str::len)
    }

    /// The comma that comes next, but for spaces, lines and comments.
    fn comma_after(&self, offset: usize) -> Option<usize> {
        let mut behind = self.text.get(offset..)?.trim_start();
        while behind.starts_with('#') {
            behind = behind.split_once('\n')?.1.trim_start();
        }
        behind.starts_with(',').then(|| self.text.len() - behind.len())
    }
}

/// Where the last thing in a table ends that has no header itself.
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

fn joined(keys: &[String]) -> String {
    keys.iter().map(|key| quoted(key)).collect::<Vec<_>>().join(".")
}

/// A key as TOML wants it, in quotes where it needs them.
fn quoted(key: &str) -> String {
    Key::new(key).to_string()
}

#[cfg(test)]
mod tests;
