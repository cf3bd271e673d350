//! The tables of a TOML text, in either of their two notations, and the paths to them.

use std::ops::Range;

use toml_edit::{Document, InlineTable, Item, Key, Table, Value};

use super::{joined, quoted};

/// A table in one of TOML's two notations.
#[derive(Clone, Copy)]
pub(super) enum AnyTable<'a> {
    /// A table under a `[header]`, with a line for each key.
    Sections(&'a Table),
    /// An inline table in braces.
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

    /// Returns the range of the last value (of `key`, if one is given), except those under headers of their
    /// own.
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

/// A table and the path to it.
pub(super) struct TablePath<'a> {
    pub(super) table: AnyTable<'a>,
    /// The keys from the root of the text.
    pub(super) keys: Vec<String>,
    /// The number of keys that stand in the header, or before the braces, around it; the others belong to
    /// dotted keys, which repeat them for each value.
    pub(super) own: usize,
}

impl<'a> TablePath<'a> {
    pub(super) fn root(document: &'a Document<&str>) -> Self {
        Self { table: AnyTable::Sections(document.as_table()), keys: Vec::new(), own: 0 }
    }

    /// Returns the table of this name in that of `kind`; `None` if there is none.
    pub(super) fn named(&self, kind: &str, name: &str) -> Result<Option<Self>, String> {
        self.child(kind)?.map_or(Ok(None), |tables| tables.child(name))
    }

    /// Returns the table at `key`; `None` if there is none.
    ///
    /// # Errors
    /// When the value at `key` is not a table.
    pub(super) fn child(&self, key: &str) -> Result<Option<Self>, String> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        let keys = [&self.keys[..], &[key.to_owned()]].concat();
        let Some(table) = AnyTable::of(item) else {
            return Err(format!("{} is {}: must be a table", joined(&keys), item.type_name()));
        };
        let own = if table.is_dotted() { self.own } else { keys.len() };
        Ok(Some(Self { table, keys, own }))
    }

    /// Returns the tables of the list at `key`; none if there is no such list.
    ///
    /// # Errors
    /// When the value at `key` is not a list of tables.
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

    /// Returns `key` as it is written in this table, with the dotted keys before it.
    pub(super) fn written(&self, key: &str) -> String {
        let dotted = self.keys.iter().skip(self.own).map(String::as_str);
        dotted.chain([key]).map(quoted).collect::<Vec<_>>().join(".")
    }
}
