//! How the faults of a configuration are told.

use std::fmt;
use std::path::PathBuf;

use concord_actors::policy::Fault;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file or the environment says what it must not.
    #[error(transparent)]
    Faults(#[from] Faults),
}

/// All the faults of one configuration, in the order of the file's lines; never empty. Its text is a line for
/// each.
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

    /// The file, as it was named.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The faults, in the order of the file's lines, those of the environment last.
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

/// A fault, and where a person can mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// Where it is written.
    pub location: Location,
    /// What is wrong, with a path from the top of the file.
    pub fault: Fault,
}

/// Where something in the configuration is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// Somewhere in the file.
    File,
    /// A line of the file, from 1. For a key that is missing, the line of its table.
    Line(usize),
    /// A place in the file where it is not TOML.
    Column {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
    },
    /// The environment variable of this name.
    Variable(String),
}
