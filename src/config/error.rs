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
    Faults(#[from] Faults),
}

/// All faults of one configuration, in the order of the file's lines; there is at least one. The text has a
/// line for each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Faults {
    file: String,
    faults: Vec<Located>,
}

impl Faults {
    pub(super) fn new(file: &str, mut faults: Vec<Located>) -> Self {
        faults.sort_by(|left, right| {
            (&left.location, &left.fault.path).cmp(&(&right.location, &right.fault.path))
        });
        Self { file: file.to_owned(), faults }
    }

    /// Returns the name of the file, as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the faults, in the order of the file's lines; those of the environment come last.
    pub fn faults(&self) -> &[Located] {
        &self.faults
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Located { location, fault }) in self.faults.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(formatter, "{newline}")?;
            match location {
                Location::File => write!(formatter, "{}", self.file)?,
                Location::Line(line) => write!(formatter, "{}:{line}", self.file)?,
                Location::Column { line, column } => write!(formatter, "{}:{line}:{column}", self.file)?,
                Location::Variable(name) => formatter.write_str(name)?,
            }
            write!(formatter, ": {fault}")?;
        }
        Ok(())
    }
}

/// A fault, and the place where it can be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The place of the fault.
    pub location: Location,
    /// The fault, with a path from the top of the file.
    pub fault: Diagnostic,
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
