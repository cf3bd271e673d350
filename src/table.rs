//! Tables for a terminal. They know nothing of what their cells mean.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, TableComponent, presets::NOTHING};

/// The width of a table without `--wide` where standard output is no terminal.
const WIDTH: u16 = 80;

/// The flag of every command that prints a table with more columns than a narrow terminal holds.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct TableArgs {
    /// Print all columns, on lines as long as they need
    #[arg(long)]
    pub(crate) wide: bool,
}

/// Returns an empty table with a line below its header. Unless it is `wide`, cells are wrapped so that it
/// fits into the terminal, or into 80 columns where there is none.
pub(crate) fn new_table<T: ToString>(header: impl IntoIterator<Item = T>, wide: bool) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_style(TableComponent::HeaderLines, '─');
    if wide {
        table.set_content_arrangement(ContentArrangement::Disabled);
    } else {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if table.width().is_none() {
            table.set_width(WIDTH);
        }
    }
    table.set_header(header.into_iter().map(|name| Cell::new(name.to_string())));
    let columns = table.column_count();
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
    }
    table
}

/// Aligns the cells of the last columns, from the one with this index, and their headers to the right.
pub(crate) fn align_right_from(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

/// Returns the text with a line break wherever the next word would not fit into 80 columns.
pub(crate) fn wrap(text: &str) -> String {
    let mut wrapped = String::new();
    for line in text.lines() {
        let mut width = 0;
        for word in line.split(' ') {
            let length = word.chars().count();
            if width > 0 && width + 1 + length > usize::from(WIDTH) {
                wrapped.push('\n');
                width = 0;
            } else if width > 0 {
                wrapped.push(' ');
                width += 1;
            }
            wrapped.push_str(word);
            width += length;
        }
        wrapped.push('\n');
    }
    wrapped.truncate(wrapped.trim_end().len());
    wrapped
}

/// Returns a cell for a number: its last digits stand below each other.
pub(crate) fn number(text: impl ToString) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wide_tables_are_wider_than_eighty_columns() {
        let printed = |wide: bool| {
            let mut table = new_table(["image", "reason"], wide);
            table.force_no_tty();
            if !wide {
                table.set_width(WIDTH);
            }
            table.add_row([Cell::new("street.jpg"), Cell::new("a reason of many words ".repeat(8))]);
            table.to_string()
        };
        assert!(
            printed(false).lines().all(|line| line.chars().count() <= usize::from(WIDTH)),
            "{}",
            printed(false)
        );
        let wide = printed(true);
        assert_eq!(wide.lines().count(), 3, "{wide}");
        assert!(wide.lines().last().unwrap_or_default().starts_with("street.jpg  a reason"), "{wide}");
    }

    #[test]
    fn lines_are_broken_between_words() {
        let text = format!("{} {}\nb", "a".repeat(70), "c".repeat(20));
        assert_eq!(wrap(&text), format!("{}\n{}\nb", "a".repeat(70), "c".repeat(20)));
        assert_eq!(wrap("short\n\nlines"), "short\n\nlines");
    }
}
