//! The stages of a task in another order: the text of each, with its comments, as it is written.

use std::ops::Range;

use serde_json::Value as Plain;
use toml_edit::{Item, Table};

use super::{AnyTable, Edit, Place, Plan, last_end, parsed, quoted, spliced};

/// `text` with the stages of `[tasks.TASK]` in this order, which says the place that each has now, and nothing else of it
/// changed; an empty order is the one that there is.
///
/// # Errors
/// When `text` is not TOML or has no such stages, or they are laid out in a way that cannot be moved: then in words that say
/// which order is to be made by hand.
pub(super) fn with_stages_in(text: &str, task: &str, order: &[usize]) -> Result<String, String> {
    if order.iter().enumerate().all(|(place, &now)| place == now) {
        return Ok(text.to_owned());
    }
    let document = parsed(text)?;
    let found = Place::root(&document).named("tasks", task)?;
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
    let after = spliced(text, edits).map_err(|_| by_hand())?;
    if is_meant(text, &after, task, order) { Ok(after) } else { Err(by_hand()) }
}

/// The models of a stage, as they are told.
fn models_of(stage: &Place<'_>) -> String {
    let models = stage.table.get("models").and_then(Item::as_array);
    let names: Vec<&str> = models.into_iter().flatten().filter_map(|model| model.as_str()).collect();
    names.join(" + ")
}

/// Whether both texts say the same, but for the order of these stages.
fn is_meant(before: &str, after: &str, task: &str, order: &[usize]) -> bool {
    let said = |text: &str| toml_edit::de::from_str::<Plain>(text).ok();
    let (Some(mut wanted), Some(after)) = (said(before), said(after)) else { return false };
    let Some(stages) = wanted.get_mut("tasks").and_then(|tasks| tasks.get_mut(task)?.get_mut("stages"))
    else {
        return false;
    };
    *stages = order.iter().map(|&now| stages[now].clone()).collect();
    wanted == after
}

/// The texts that change places with each other, one of each stage in each list, in the order of the stages.
fn pieces(text: &str, root: &Table, stages: &[Place<'_>]) -> Option<Vec<Vec<Range<usize>>>> {
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
    let plan = Plan::of(text);
    let values =
        braces.iter().map(|value| comments_above(text, value.start).unwrap_or(value.start)..value.end);
    Some(vec![values.collect(), braces.iter().map(|value| comment_behind(&plan, value.end)).collect()])
}

/// Where the headers of a table and of all in it begin.
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

/// A table with a header, from the comments directly above it to the end of what is said in it.
///
/// What follows belongs to it as far as the next table with a header of its own, but for empty lines; where that is not one
/// of the same list, as far as the first empty line only, behind which a comment may announce what comes.
fn section(text: &str, headers: &[usize], of_list: &[usize], table: &Table) -> Option<Range<usize>> {
    let header = table.span()?.start;
    let start = comments_above(text, header)?;
    let mut own = Vec::new();
    headers_of(table, &mut own);
    let next = headers.iter().copied().filter(|other| *other > header && !own.contains(other)).min();
    let limit = next.map_or(Some(text.len()), |next| comments_above(text, next))?;
    let said = last_end(table).max(table.span()?.end);
    let mut end = limit;
    if !next.is_some_and(|next| of_list.contains(&next)) {
        // The rest of the line in which the last value ends, and the comments below it.
        let behind = text.get(said..limit)?;
        let mut lines = behind.split_inclusive('\n');
        let first = lines.next().map_or(0, str::len);
        end = said + first + lines.take_while(|line| !line.trim().is_empty()).map(str::len).sum::<usize>();
    }
    let trimmed = text.get(start..end)?.trim_end().len();
    (start + trimmed >= said).then_some(start..start + trimmed)
}

/// Where the line of `offset` begins, or the first of the comment lines directly above it; `None` where something else stands
/// before it in its line.
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

/// The comment behind a value, and behind its comma, in the same line; an empty range where there is none.
fn comment_behind(plan: &Plan<'_>, end: usize) -> Range<usize> {
    let line_end = plan.line_end(end);
    let start = plan.comma_after(end).filter(|comma| *comma < line_end).map_or(end, |comma| comma + 1);
    let is_comment =
        plan.text.get(start..line_end).is_some_and(|behind| behind.trim_start().starts_with('#'));
    start..if is_comment { line_end } else { start }
}

#[cfg(test)]
mod tests;
