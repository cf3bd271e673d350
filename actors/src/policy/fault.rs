//! What is wrong with a section, and where.

use std::fmt;

/// How many allowed values a message lists; with more, it says how many there are.
const LISTED_MAX: usize = 12;

/// One fault of a configuration section. Its text is `path: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, from the section inwards. The last key may be one that is missing.
    pub path: Vec<PathPart>,
    /// The value, and what would be allowed.
    pub message: String,
}

/// A step from a table or a list to what it contains.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathPart {
    /// Of a table.
    Key(String),
    /// Of a list, from 0.
    Index(usize),
}

impl From<&str> for PathPart {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for PathPart {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Fault {
    /// A fault at `path`.
    pub fn new(path: Vec<PathPart>, message: impl Into<String>) -> Self {
        Self { path, message: message.into() }
    }

    /// The same fault, seen from outside the section: `outer` leads to the section.
    #[must_use]
    pub fn within(self, outer: &[PathPart]) -> Self {
        Self { path: [outer, &self.path].concat(), message: self.message }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, part) in self.path.iter().enumerate() {
            let dot = if depth == 0 { "" } else { "." };
            match part {
                PathPart::Index(index) => write!(formatter, "[{index}]")?,
                PathPart::Key(key) if is_bare(key) => write!(formatter, "{dot}{key}")?,
                PathPart::Key(key) => write!(formatter, "{dot}{key:?}")?,
            }
        }
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(formatter, "{colon}{}", self.message)
    }
}

/// Whether TOML takes the key without quotes.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char))
}

/// The message for a name that is none of those allowed: `"x" is not WHAT: must be one of …`, with the one that
/// was probably meant.
pub fn not_one_of<'a>(name: &str, what: &str, allowed: impl IntoIterator<Item = &'a str>) -> String {
    let allowed: Vec<&str> = allowed.into_iter().collect();
    let suggestion = nearest(name, allowed.iter().copied())
        .map(|meant| format!(" (did you mean {meant:?}?)"))
        .unwrap_or_default();
    let choice = match allowed.len() {
        0 => "there is none".to_owned(),
        1..=LISTED_MAX => format!("must be one of {}", allowed.join(", ")),
        count => format!("must be one of {count}"),
    };
    format!("{name:?} is not {what}{suggestion}: {choice}")
}

/// The candidate that `name` is probably a misspelling of.
///
/// At most one edit in three characters, a swap of neighbours being one: nearer than two unrelated names mostly
/// are.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
