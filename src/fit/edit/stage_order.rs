//! Reorders the stages of a task: the text of each stage is moved with its comments.

use std::ops::Range;

use serde_json::Value as Plain;
use toml_edit::{Item, Table};

use super::{AnyTable, Edit, EditPlan, TablePath, last_end, parse, quoted, splice};

/// Returns `text` with the stages of `[tasks.TASK]` in this order of their present places, and nothing else
/// changed; an empty order keeps the present one.
///
/// # Errors
/// When `text` is not TOML or has no such stages, or their layout cannot be reordered; the error then names
/// the order to make by hand.
pub(super) fn with_stages_in(text: &str, task: &str, order: &[usize]) -> Result<String, String> {
    if order.iter().enumerate().all(|(place, &now)| place == now) {
        return Ok(text.to_owned());
    }
    let document = parse(text)?;
    let found = TablePath::root(&document).named("tasks", task)?;
    let stages = found.as_ref().map_or(Ok(Vec::new()), |place| place.elements("stages"))?;
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..stages.len()) {
        let (task, count) = (quoted(task), stages.len());
        return Err(format!("tasks.{task} has {count} stages: {order:?} is no order of them"));
    }
    let by_hand = || {
        let names: Vec<String> = order.iter().map(|&now| models_of(&stages[now])).collect();
        format!(
            "the stages of tasks.{} are laid out in a way that cannot be moved: put them by hand in the order {}, then fit \
             again",
            quoted(task),
            names.join(", ")
        )
    };
    let mut edits = Vec::new();
    for pieces in pieces(text, document.as_table(), &stages).ok_or_else(by_hand)? {
        for (place, &now) in order.iter().enumerate() {
            let moved = text.get(pieces[now].clone()).ok_or_else(by_hand)?.to_owned();
            edits.push(Edit { range: pieces[place].clone(), text: moved });
        }
    }
    let after = splice(text, edits).map_err(|_| by_hand())?;
    if is_meant(text, &after, task, order) { Ok(after) } else { Err(by_hand()) }
}

/// Names the models of a stage for messages.
fn models_of(stage: &TablePath<'_>) -> String {
    let models = stage.table.get("models").and_then(Item::as_array);
    let names: Vec<&str> = models.into_iter().flatten().filter_map(|model| model.as_str()).collect();
    names.join(" + ")
}

/// Returns whether both texts have the same values, except for the order of these stages.
fn is_meant(before: &str, after: &str, task: &str, order: &[usize]) -> bool {
    let values = |text: &str| toml_edit::de::from_str::<Plain>(text).ok();
    let (Some(mut expected), Some(after)) = (values(before), values(after)) else { return false };
    let Some(stages) = expected.get_mut("tasks").and_then(|tasks| tasks.get_mut(task)?.get_mut("stages"))
    else {
        return false;
    };
    *stages = order.iter().map(|&now| stages[now].clone()).collect();
    expected == after
}

/// Returns lists of ranges that change places with each other; each list has one range per stage, in the
/// order of the stages.
fn pieces(text: &str, root: &Table, stages: &[TablePath<'_>]) -> Option<Vec<Vec<Range<usize>>>> {
    let mut sections = Vec::new();
    let mut braces = Vec::new();
    for stage in stages {
        match stage.table {
            AnyTable::Sections(table) => sections.push(table),
            AnyTable::Braces(table) => braces.push(table.span()?),
        }
    }
    if braces.is_empty() {
        let mut headers = Vec::new();
        headers_of(root, &mut headers);
        let of_list: Vec<usize> =
            sections.iter().map(|table| Some(table.span()?.start)).collect::<Option<_>>()?;
        let pieces: Option<_> =
            sections.iter().map(|table| section(text, &headers, &of_list, table)).collect();
        return Some(vec![pieces?]);
    }
    let plan = EditPlan::of(text);
    let values =
        braces.iter().map(|value| comments_above(text, value.start).unwrap_or(value.start)..value.end);
    Some(vec![values.collect(), braces.iter().map(|value| comment_behind(&plan, value.end)).collect()])
}

/// Collects the starts of the headers of a table and of its subtables.
fn headers_of(table: &Table, found: &mut Vec<usize>) {
    if !table.is_implicit() && !table.is_dotted() {
        found.extend(table.span().map(|span| span.start));
    }
    for (_, item) in table {
        match item {
            Item::Table(table) => headers_of(table, found),
            Item::ArrayOfTables(tables) => tables.iter().for_each(|table| headers_of(table, found)),
            _ => {}
        }
    }
}

/// Returns the range of a table with a header, from the comments directly above it to the end of its text.
///
/// The text up to the next table with a header of its own belongs to it, except trailing empty lines. If the
/// next table is not one of the same list, only the text up to the first empty line does, because a comment
/// after that may introduce the next table.
fn section(text: &str, headers: &[usize], of_list: &[usize], table: &Table) -> Option<Range<usize>> {
    let header = table.span()?.start;
    let start = comments_above(text, header)?;
    let mut own = Vec::new();
    headers_of(table, &mut own);
    let next = headers.iter().copied().filter(|other| *other > header && !own.contains(other)).min();
    let limit = next.map_or(Some(text.len()), |next| comments_above(text, next))?;
    let values_end = last_end(table).max(table.span()?.end);
    let mut end = limit;
    if !next.is_some_and(|next| of_list.contains(&next)) {
        // The rest of the line in which the last value ends, and the comments below it.
        let behind = text.get(values_end..limit)?;
        let mut lines = behind.split_inclusive('\n');
        let first = lines.next().map_or(0, str::len);
        end = values_end
            + first
            + lines.take_while(|line| !line.trim().is_empty()).map(str::len).sum::<usize>();
    }
    let trimmed = text.get(start..end)?.trim_end().len();
    (start + trimmed >= values_end).then_some(start..start + trimmed)
}

/// Returns the start of the line of `offset`, or of the first comment line directly above it; `None` if
/// something else precedes it in its line.
fn comments_above(text: &str, offset: usize) -> Option<usize> {
    let before = text.get(..offset)?;
    let mut start = before.rfind('\n').map_or(0, |end| end + 1);
    if !before.get(start..)?.trim().is_empty() {
        return None;
    }
    while let Some(above) = text.get(..start.saturating_sub(1)).filter(|_| start > 0) {
        let line = above.rfind('\n').map_or(0, |end| end + 1);
        if !above.get(line..)?.trim_start().starts_with('#') {
            break;
        }
        start = line;
    }
    Some(start)
}

/// Returns the range of the comment after a value and its comma in the same line; empty if there is none.
fn comment_behind(plan: &EditPlan<'_>, end: usize) -> Range<usize> {
    let line_end = plan.line_end(end);
    let start = plan.comma_after(end).filter(|comma| *comma < line_end).map_or(end, |comma| comma + 1);
    let is_comment =
        plan.text.get(start..line_end).is_some_and(|behind| behind.trim_start().starts_with('#'));
    start..if is_comment { line_end } else { start }
}

#[cfg(test)]
mod tests;
