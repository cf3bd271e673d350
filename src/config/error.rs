//! The faults of a configuration, with the place of each, and their text.

use std::fmt;
use std::path::PathBuf;

use concord_actors::Diagnostic;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file or the environment has faults.
    #[error(transparent)]
    Invalid(#[from] Diagnostics),
}

/// All faults of one configuration, in the order of the file's lines; there is at least one. The text has a
/// line for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostics {
    file: String,
    diagnostics: Vec<LocatedDiagnostic>,
}

impl Diagnostics {
    pub(super) fn new(file: &str, mut diagnostics: Vec<LocatedDiagnostic>) -> Self {
        diagnostics.sort_by(|left, right| {
            (&left.location, &left.diagnostic.path).cmp(&(&right.location, &right.diagnostic.path))
        });
        Self { file: file.to_owned(), diagnostics }
    }

    /// Returns the name of the file, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the faults, in the order of the file's lines; those of the environment come last.
    pub fn diagnostics(&self) -> &[LocatedDiagnostic] {
        &self.diagnostics
    }

    /// Returns a location as messages write it: the file with line and column, or the variable's name.
    pub fn place(&self, location: &Location) -> String {
        let file = &self.file;
        match location {
            Location::File => file.clone(),
            Location::Line(line) => format!("{file}:{line}"),
            Location::Column { line, column } => format!("{file}:{line}:{column}"),
            Location::Variable(name) => name.clone(),
        }
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, LocatedDiagnostic { location, diagnostic }) in self.diagnostics.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(formatter, "{newline}{}: {diagnostic}", self.place(location))?;
        }
        Ok(())
    }
}

/// A fault, and the place where it can be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedDiagnostic {
    /// The place of the fault.
    pub location: Location,
    /// The fault, with a path from the top of the file.
    pub diagnostic: Diagnostic,
}

/// A place in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// The file as a whole.
    File,
    /// A line of the file, counted from 1; for a missing key, the line of its table.
    Line(usize),
    /// A position in the file at which it is not TOML.
    Column {
        /// The line, counted from 1.
        line: usize,
        /// The column in characters, counted from 1.
        column: usize,
    },
    /// The environment variable with this name.
    Variable(String),
}
