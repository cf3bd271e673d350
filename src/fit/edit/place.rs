//! The tables of a text, written in either of TOML's two ways, and the way to them.

use std::ops::Range;

use toml_edit::{Document, InlineTable, Item, Key, Table, Value};

use super::{joined, quoted};

/// The two kinds of tables in a text.
#[derive(Clone, Copy)]
pub(super) enum AnyTable<'a> {
    /// Under a `[header]`, with a line for each key.
    Sections(&'a Table),
    /// In braces.
    Braces(&'a InlineTable),
}

impl<'a> AnyTable<'a> {
    pub(super) fn of(item: &'a Item) -> Option<Self> {
        match item {
            Item::Table(table) => Some(Self::Sections(table)),
            Item::Value(Value::InlineTable(table)) => Some(Self::Braces(table)),
            _ => None,
        }
    }

    pub(super) fn get(self, key: &str) -> Option<&'a Item> {
        match self {
            Self::Sections(table) => table.get(key),
            Self::Braces(table) => table.get_key_value(key).map(|(_, item)| item),
        }
    }

    pub(super) fn is_dotted(self) -> bool {
        match self {
            Self::Sections(table) => table.is_dotted(),
            Self::Braces(table) => table.is_dotted(),
        }
    }

    /// Where the last of its values stands, of those of `key` where one is given; not those under headers of their own.
    pub(super) fn last_value(self, key: Option<&str>) -> Option<Range<usize>> {
        let values = match self {
            Self::Sections(table) => table.get_values(),
            Self::Braces(table) => table.get_values(),
        };
        let is_meant =
            |path: &[&Key]| key.is_none_or(|key| path.first().is_some_and(|first| first.get() == key));
        values
            .into_iter()
            .filter(|(path, _)| is_meant(path))
            .filter_map(|(_, value)| value.span())
            .max_by_key(|span| span.end)
    }
}

/// A table and the way to it.
pub(super) struct Place<'a> {
    pub(super) table: AnyTable<'a>,
    /// From the root of the text.
    pub(super) keys: Vec<String>,
    /// How many of them stand in the header, or before the braces, around it; the others, of dotted keys, are repeated
    /// for each of its values.
    pub(super) own: usize,
}

impl<'a> Place<'a> {
    pub(super) fn root(document: &'a Document<&str>) -> Self {
        Self { table: AnyTable::Sections(document.as_table()), keys: Vec::new(), own: 0 }
    }

    /// The table of this name in that of `kind`; `None` where there is nothing.
    pub(super) fn named(&self, kind: &str, name: &str) -> Result<Option<Self>, String> {
        self.child(kind)?.map_or(Ok(None), |tables| tables.child(name))
    }

    /// The table at `key`; `None` where there is nothing.
    pub(super) fn child(&self, key: &str) -> Result<Option<Self>, String> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        let keys = [&self.keys[..], &[key.to_owned()]].concat();
        let Some(table) = AnyTable::of(item) else {
            return Err(format!("{} is {}: must be a table", joined(&keys), item.type_name()));
        };
        let own = if table.is_dotted() { self.own } else { keys.len() };
        Ok(Some(Self { table, keys, own }))
    }

    /// The tables of the list at `key`; none where there is no such list.
    pub(super) fn elements(&self, key: &str) -> Result<Vec<Self>, String> {
        let Some(item) = self.table.get(key) else { return Ok(Vec::new()) };
        let keys = [&self.keys[..], &[key.to_owned()]].concat();
        let tables: Option<Vec<AnyTable<'a>>> = match item {
            Item::ArrayOfTables(tables) => Some(tables.iter().map(AnyTable::Sections).collect()),
            Item::Value(Value::Array(values)) => {
                values.iter().map(|value| value.as_inline_table().map(AnyTable::Braces)).collect()
            }
            _ => None,
        };
        let Some(tables) = tables else { return Err(format!("{} must be a list of tables", joined(&keys))) };
        Ok(tables.into_iter().map(|table| Self { table, own: keys.len(), keys: keys.clone() }).collect())
    }

    /// `key` as it is written in this table.
    pub(super) fn written(&self, key: &str) -> String {
        let dotted = self.keys.iter().skip(self.own).map(String::as_str);
        dotted.chain([key]).map(quoted).collect::<Vec<_>>().join(".")
    }
}
