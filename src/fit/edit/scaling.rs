//! Vector scaling in the text; and of the two calibrations of a model, the one that goes where the other comes.

use std::collections::BTreeMap;
use std::ops::Range;

use concord_policy::VectorScaling;
use toml_edit::{Array, Document, Key, Value};

use super::{AnyTable, Edit, Place, Plan, TaskChange, Wanted, as_written, last_end, parsed, spliced};

/// Where lists of numbers are broken.
const COLUMNS_MAX: usize = 110;

/// `text` without the vector scaling of models that get a temperature, and without the temperatures of those that get vector
/// scaling: both together are a fault.
///
/// # Errors
/// When `text` is not TOML, or is laid out in a way that this does not know.
pub(super) fn without_replaced(text: &str, task: &str, change: &TaskChange) -> Result<String, String> {
    let scalings = change.temperatures.keys().map(|model| ("scaling", model));
    let temperatures = change.scalings.keys().map(|model| ("calibration", model));
    let mut text = text.to_owned();
    for (section, model) in scalings.chain(temperatures) {
        // Cut by cut, as two of them may share a comma; each leaves less.
        while let Some(cuts) = next_cuts(&text, &["tasks", task, section, model])? {
            let after = spliced(&text, cuts)?;
            if after.len() >= text.len() || parsed(&after).is_err() {
                return Err(format!(
                    "{section} of {model:?} in tasks.{task} cannot be taken out: do it by hand"
                ));
            }
            text = after;
        }
    }
    Ok(text)
}

/// What has to be cut for the first thing that the text has at these keys; `None` where it has none.
fn next_cuts(text: &str, keys: &[&str]) -> Result<Option<Vec<Edit>>, String> {
    let document = parsed(text)?;
    let Some(found) = Found::at(&document, keys) else { return Ok(None) };
    let plan = Plan::of(text);
    let statements = found.owner.statements();
    let Some(place) = statements.iter().position(|statement| found.is_meant(statement)) else {
        // A header with nothing left below it.
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

/// What there is at some keys.
struct Found<'a, 'k> {
    /// The innermost header, or pair of braces, that it stands in; its own where it has a header.
    owner: AnyTable<'a>,
    /// The keys from there.
    rest: &'k [&'k str],
}

/// A key with dots, and its value.
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
    /// Those that stand in it, with dots or without, in their order in the text.
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

impl Plan<'_> {
    /// Adds or changes the vector scaling of models in a task's table: under a header each, behind all else of the task, where
    /// it has headers itself.
    pub(super) fn scalings(
        &mut self,
        place: &Place<'_>,
        scalings: &BTreeMap<String, VectorScaling>,
    ) -> Result<(), String> {
        for (model, scaling) in scalings {
            let numbers = [("scale", scaling.scale()), ("bias", scaling.bias())]
                .map(|(key, numbers)| (key, numbers.iter().map(|number| as_written(*number)).collect()));
            let section = place.child("scaling")?;
            let known = section.as_ref().map(|section| section.child(model)).transpose()?.flatten();
            let may_have_headers =
                |place: &Place<'_>| matches!(place.table, AnyTable::Sections(_)) && !place.table.is_dotted();
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
                        numbers.map(|(key, numbers)| (key.to_owned(), Wanted::Numbers(numbers))).into();
                    let of_model = Wanted::Entries(vec![(model.clone(), Wanted::Entries(numbers))]);
                    self.merge(place, &[("scaling".to_owned(), of_model)], Some("calibration"))?;
                }
            }
        }
        Ok(())
    }

    /// A list, broken where it is long.
    fn list_in_lines(&self, key: &str, numbers: Vec<f64>) -> String {
        const INDENT: &str = "    ";
        let short = format!("{key} = {}", Wanted::Numbers(numbers.clone()).literal());
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

    /// Each number of a list in its place.
    pub(super) fn replace_numbers(&mut self, old: &Array, new: &[f64]) {
        for (old, new) in old.iter().zip(new) {
            let wanted = Wanted::Number(*new);
            if let Some(range) = old.span().filter(|_| !wanted.is_said_by(old)) {
                self.edits.push(Edit { range, text: wanted.literal() });
            }
        }
    }

    /// A statement that begins its line; all of the line, unless a comment is left.
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

    /// A header with the empty line before it, unless a comment is left.
    fn header_cut(&self, header: Range<usize>) -> Edit {
        let line_end = self.line_end(header.end);
        let mut cut = self.line_cut(header);
        let before = self.text.get(..cut.range.start).unwrap_or_default();
        if cut.range.end >= line_end && before.ends_with(&self.newline.repeat(2)) {
            cut.range.start -= self.newline.len();
        }
        cut
    }

    /// A statement in braces with its comma, or the comma after the one that ends at `before` where it has none itself.
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

    /// Where the line after the one that ends at `line_end` begins.
    fn next_line(&self, line_end: usize) -> usize {
        let behind = self.text.get(line_end..).unwrap_or_default();
        let newline = ["\r\n", "\n"].into_iter().find(|newline| behind.starts_with(newline));
        line_end + newline.map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests;
