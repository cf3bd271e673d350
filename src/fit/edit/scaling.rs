//! Edits vector scaling, and removes the calibration of a model that a new one replaces.

use std::collections::BTreeMap;
use std::ops::Range;

use concord_policy::VectorScaling;
use toml_edit::{Array, Document, Key, Value};

use super::{AnyTable, Edit, EditPlan, NewValue, TablePath, TaskChange, as_written, last_end, parse, splice};

/// The width at which lists of numbers are broken into lines.
const COLUMNS_MAX: usize = 110;

/// Returns `text` without the vector scaling of models that get a temperature, and without the temperatures
/// of those that get vector scaling: having both is a fault.
///
/// # Errors
/// When `text` is not TOML, or has a layout that cannot be edited.
pub(super) fn without_replaced(text: &str, task: &str, change: &TaskChange) -> Result<String, String> {
    let scalings = change.temperatures.keys().map(|model| ("scaling", model));
    let temperatures = change.scalings.keys().map(|model| ("calibration", model));
    let mut text = text.to_owned();
    for (section, model) in scalings.chain(temperatures) {
        // One by one, because two cuts may share a comma; each shortens the text.
        while let Some(cuts) = next_cuts(&text, &["tasks", task, section, model])? {
            let after = splice(&text, cuts)?;
            if after.len() >= text.len() || parse(&after).is_err() {
                return Err(format!(
                    "{section} of {model:?} in tasks.{task} cannot be taken out: do it by hand"
                ));
            }
            text = after;
        }
    }
    Ok(text)
}

/// Returns the edits that cut the first value at these keys; `None` if there is none.
fn next_cuts(text: &str, keys: &[&str]) -> Result<Option<Vec<Edit>>, String> {
    let document = parse(text)?;
    let Some(found) = Found::at(&document, keys) else { return Ok(None) };
    let plan = EditPlan::of(text);
    let statements = found.owner.statements();
    let Some(place) = statements.iter().position(|statement| found.is_meant(statement)) else {
        // A header with nothing left below it is cut as well.
        let header = if found.rest.is_empty() { found.owner.header() } else { None };
        return Ok(header.map(|header| vec![plan.header_cut(header)]));
    };
    let statement = &statements[place];
    Ok(Some(match found.owner {
        AnyTable::Sections(_) => vec![plan.line_cut(statement.range.clone())],
        AnyTable::Braces(_) => {
            let before = place.checked_sub(1).map(|before| statements[before].range.end);
            plan.cuts_in_braces(before, statement.range.clone())
        }
    }))
}

/// The value at some keys.
struct Found<'a, 'k> {
    /// The innermost table with a header or braces that contains it; the table itself if it has a header.
    owner: AnyTable<'a>,
    /// The keys from there to the value.
    rest: &'k [&'k str],
}

/// A dotted key with its value.
struct Statement<'a> {
    keys: Vec<&'a Key>,
    range: Range<usize>,
}

impl<'a, 'k> Found<'a, 'k> {
    fn at(document: &'a Document<&str>, keys: &'k [&'k str]) -> Option<Self> {
        let mut table = AnyTable::Sections(document.as_table());
        let mut found = Self { owner: table, rest: keys };
        for (depth, key) in keys.iter().enumerate() {
            let (item, rest) = (table.get(key)?, &keys[depth + 1..]);
            let Some(inner) = AnyTable::of(item) else { return rest.is_empty().then_some(found) };
            let is_header = matches!(inner, AnyTable::Sections(_));
            if !inner.is_dotted() && (is_header || !rest.is_empty()) {
                found = Self { owner: inner, rest };
            }
            table = inner;
        }
        Some(found)
    }

    fn is_meant(&self, statement: &Statement<'_>) -> bool {
        let keys = statement.keys.iter().map(|key| key.get());
        keys.take(self.rest.len()).eq(self.rest.iter().copied())
    }
}

impl<'a> AnyTable<'a> {
    /// Returns the statements of the table, dotted or not, in their order in the text.
    fn statements(self) -> Vec<Statement<'a>> {
        let values = match self {
            Self::Sections(table) => table.get_values(),
            Self::Braces(table) => table.get_values(),
        };
        let statement = |(keys, value): (Vec<&'a Key>, &'a Value)| {
            let range = keys.first()?.span()?.start..value.span()?.end;
            Some(Statement { keys, range })
        };
        let mut statements: Vec<_> = values.into_iter().filter_map(statement).collect();
        statements.sort_by_key(|statement| statement.range.start);
        statements
    }

    fn header(self) -> Option<Range<usize>> {
        match self {
            Self::Sections(table) if !table.is_implicit() => table.span(),
            _ => None,
        }
    }
}

impl EditPlan<'_> {
    /// Plans the edits that set the vector scaling of models in a task's table: under a header each, after
    /// all else of the task, if the task has headers itself.
    pub(super) fn scalings(
        &mut self,
        place: &TablePath<'_>,
        scalings: &BTreeMap<String, VectorScaling>,
    ) -> Result<(), String> {
        for (model, scaling) in scalings {
            let numbers = [("scale", scaling.scale()), ("bias", scaling.bias())]
                .map(|(key, numbers)| (key, numbers.iter().map(|number| as_written(*number)).collect()));
            let section = place.child("scaling")?;
            let known = section.as_ref().map(|section| section.child(model)).transpose()?.flatten();
            let may_have_headers = |place: &TablePath<'_>| {
                matches!(place.table, AnyTable::Sections(_)) && !place.table.is_dotted()
            };
            match place.table {
                AnyTable::Sections(table)
                    if known.is_none()
                        && may_have_headers(place)
                        && section.as_ref().is_none_or(may_have_headers) =>
                {
                    let keys = [&place.keys[..], &["scaling".to_owned(), model.clone()]].concat();
                    let lines = numbers.map(|(key, numbers)| self.list_in_lines(key, numbers));
                    self.add_section(last_end(table), &keys, &lines);
                }
                _ => {
                    let numbers =
                        numbers.map(|(key, numbers)| (key.to_owned(), NewValue::Numbers(numbers))).into();
                    let of_model = NewValue::Entries(vec![(model.clone(), NewValue::Entries(numbers))]);
                    self.merge(place, &[("scaling".to_owned(), of_model)], Some("calibration"))?;
                }
            }
        }
        Ok(())
    }

    /// Returns a list as it is written, broken into lines if it is long.
    fn list_in_lines(&self, key: &str, numbers: Vec<f64>) -> String {
        const INDENT: &str = "    ";
        let short = format!("{key} = {}", NewValue::Numbers(numbers.clone()).literal());
        if short.len() <= COLUMNS_MAX {
            return short;
        }
        let (mut text, mut line) = (format!("{key} = ["), String::new());
        for number in numbers {
            let next = format!("{},", Value::from(number));
            if line.is_empty() || INDENT.len() + line.len() + 1 + next.len() > COLUMNS_MAX {
                text.push_str(&format!("{line}{}{INDENT}", self.newline));
                line = next;
            } else {
                line.push(' ');
                line.push_str(&next);
            }
        }
        text + &format!("{line}{}]", self.newline)
    }

    /// Plans the edits that replace the numbers of a list one by one.
    pub(super) fn replace_numbers(&mut self, old: &Array, new: &[f64]) {
        for (old, new) in old.iter().zip(new) {
            let wanted = NewValue::Number(*new);
            if let Some(range) = old.span().filter(|_| !wanted.equals(old)) {
                self.edits.push(Edit { range, text: wanted.literal() });
            }
        }
    }

    /// Returns the cut of a statement that begins its line: the whole line, unless a comment follows.
    fn line_cut(&self, statement: Range<usize>) -> Edit {
        let start = statement.start - self.line_before(statement.start).len();
        let line_end = self.line_end(statement.end);
        let behind = self.text.get(statement.end..line_end).unwrap_or_default();
        let range = if behind.trim().is_empty() {
            start..self.next_line(line_end)
        } else {
            statement.start..line_end - behind.trim_start().len()
        };
        Edit { range, text: String::new() }
    }

    /// Returns the cut of a header, with the empty line before it unless a comment follows.
    fn header_cut(&self, header: Range<usize>) -> Edit {
        let line_end = self.line_end(header.end);
        let mut cut = self.line_cut(header);
        let before = self.text.get(..cut.range.start).unwrap_or_default();
        if cut.range.end >= line_end && before.ends_with(&self.newline.repeat(2)) {
            cut.range.start -= self.newline.len();
        }
        cut
    }

    /// Returns the cuts of a statement in braces with its comma, or with the comma after the statement that
    /// ends at `before` if it has none itself.
    fn cuts_in_braces(&self, before: Option<usize>, statement: Range<usize>) -> Vec<Edit> {
        let cut = |range| Edit { range, text: String::new() };
        let has_line = self.line_before(statement.start).trim().is_empty();
        let whole = |end: usize| {
            if has_line {
                return self.line_cut(statement.start..end);
            }
            let behind = self.text.get(end..self.line_end(end)).unwrap_or_default();
            cut(statement.start..end + behind.len() - behind.trim_start().len())
        };
        if let Some(comma) = self.comma_after(statement.end) {
            return vec![whole(comma + 1)];
        }
        let Some(before) = before else { return vec![whole(statement.end)] };
        let comma = self.comma_after(before).map(|comma| comma..comma + 1);
        if has_line {
            comma.map(cut).into_iter().chain([whole(statement.end)]).collect()
        } else {
            vec![cut(before..statement.end)]
        }
    }

    /// Returns the start of the line after the one that ends at `line_end`.
    fn next_line(&self, line_end: usize) -> usize {
        let behind = self.text.get(line_end..).unwrap_or_default();
        let newline = ["\r\n", "\n"].into_iter().find(|newline| behind.starts_with(newline));
        line_end + newline.map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests;
