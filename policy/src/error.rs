//! The errors of a task's section: each with the key and the problem.

use std::fmt;

/// An error in a task's section. Its text is `path: problem`.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyError {
    /// The path from the section inwards. The last key may be one that is missing.
    pub path: Vec<PathPart>,
    /// The problem there.
    pub problem: Problem,
}

/// A step from a table or a list to what it contains.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathPart {
    /// A key of a table.
    Key(String),
    /// An index of a list, from 0.
    Index(usize),
}

/// A problem of a value, with what would be allowed in its place.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// A value that must be given is absent.
    #[error("is missing: {allowed}")]
    Missing {
        /// The value that must be given.
        allowed: &'static str,
    },
    /// A value that must be given is absent, or has nothing in it.
    #[error("is missing or empty: {allowed}")]
    MissingOrEmpty {
        /// The value that must be given.
        allowed: &'static str,
    },
    /// A value that may be absent has nothing in it.
    #[error("is empty: {allowed}")]
    Empty {
        /// The content that it must have.
        allowed: &'static str,
    },
    /// A number is outside its range.
    #[error("{value} is not {what}: {allowed}")]
    OutOfRange {
        /// The number.
        value: f64,
        /// The name of such a number, with its article.
        what: &'static str,
        /// The range.
        allowed: &'static str,
    },
    /// A name is none of those that there are.
    #[error("{name:?} is not {what}: must be one of {}", allowed.join(", "))]
    UnknownName {
        /// The name.
        name: String,
        /// The kind of name, with its article.
        what: &'static str,
        /// Every name of that kind.
        allowed: Vec<String>,
    },
    /// A task has fewer than two labels.
    #[error("{given} given: must be at least 2")]
    TooFewLabels {
        /// The number of its labels.
        given: usize,
    },
    /// A label is blank.
    #[error("{label:?} is empty: must be a text")]
    BlankLabel {
        /// The label.
        label: String,
    },
    /// A label is given twice.
    #[error("{label:?} stands here twice: labels must differ")]
    RepeatedLabel {
        /// The label.
        label: String,
    },
    /// A prompt template has no place for the label.
    #[error("{template:?} would be the same for every label: must contain {{label}}")]
    TemplateWithoutLabel {
        /// The template.
        template: String,
    },
    /// Two labels have the same answer.
    #[error("{answer:?} stands for two labels: answers must differ in more than case")]
    RepeatedAnswer {
        /// The answer.
        answer: String,
    },
    /// A list has not one number for each label.
    #[error("{found} numbers for {labels} labels: must be one for each, in their order")]
    NumbersPerLabel {
        /// The number of numbers in it.
        found: usize,
        /// The number of the task's labels.
        labels: usize,
    },
    /// A model has a temperature and vector scaling.
    #[error("is given beside calibration.{model}: keep one of the two")]
    TwoCalibrations {
        /// The model's name.
        model: String,
    },
    /// A model is asked in two stages.
    #[error("{model:?} is asked in stages[{stage}] already: a model votes once")]
    AskedTwice {
        /// The model's name.
        model: String,
        /// The index of the earlier stage.
        stage: usize,
    },
    /// A setting would have no effect in the first stage.
    #[error("is of no use in the first stage: {reason}")]
    UselessInFirstStage {
        /// Why it has no effect there.
        reason: &'static str,
    },
    /// A stage that stands in for others has a required model.
    #[error("needs a stage of optional models: where they fail, the earlier stage is asked")]
    BurstNeedsOptional,
    /// A setting needs a learned file, and the task names none.
    #[error("{what} needs learned = FILE, which `concord fit` writes")]
    NeedsLearned {
        /// The setting.
        what: &'static str,
    },
    /// The learned networks read the feature of a model that the task does not ask.
    #[error("reads the feature of {backbone:?}, which no stage asks: fit again (`concord fit`)")]
    BackboneNotAsked {
        /// The model's name.
        backbone: String,
    },
    /// The learned networks read the feature of a model that is asked too late.
    #[error("reads the feature of {backbone:?}, which is asked later: must be asked before")]
    BackboneAskedLater {
        /// The model's name.
        backbone: String,
    },
    /// The learned file has no weights for some of the task's models.
    #[error("there are no learned weights for {}: fit again (`concord fit`)", models.join(", "))]
    NoLearnedWeights {
        /// The models' names.
        models: Vec<String>,
    },
    /// The learned file has no correctness estimator for the answers of a stage.
    #[error("there is no learned correctness estimator for answers of {}: fit again (`concord fit`)", models.join(", "))]
    NoLearnedEstimator {
        /// The names of the models that have voted by then.
        models: Vec<String>,
    },
}

impl PolicyError {
    pub(crate) fn new(path: impl Into<Vec<PathPart>>, problem: Problem) -> Self {
        Self { path: path.into(), problem }
    }
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

impl PathPart {
    /// Returns the path as it is written in TOML, such as `stages[0].models`; empty for an empty path.
    pub fn join(path: &[Self]) -> String {
        let mut text = String::new();
        for part in path {
            let dot = if text.is_empty() { "" } else { "." };
            match part {
                Self::Index(index) => text.push_str(&format!("[{index}]")),
                Self::Key(key) if is_bare(key) => text.push_str(&format!("{dot}{key}")),
                Self::Key(key) => text.push_str(&format!("{dot}{key:?}")),
            }
        }
        text
    }
}

/// Returns whether TOML takes the key without quotes.
fn is_bare(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char))
}

impl fmt::Display for PolicyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(formatter, "{}{colon}{}", PathPart::join(&self.path), self.problem)
    }
}

impl std::error::Error for PolicyError {}
