//! Defines the errors of a configuration, with their location: one form for every section, whichever layer
//! validates it.
//!
//! The policy has errors of its own, which know nothing of a file; they are converted to diagnostics here,
//! with a suggestion where a name is probably misspelt.

use std::fmt;

use concord_policy::{PathPart, PolicyError, Problem};

/// The most allowed values that a message lists; if there are more, it gives their number.
const LISTED_MAX: usize = 12;

/// An error in a configuration section. Its text is `path: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The location, from the section inwards. The last key may be one that is missing.
    pub path: Vec<PathPart>,
    /// The value, and the values that would be allowed.
    pub message: String,
}

impl Diagnostic {
    /// Makes a diagnostic at `path`.
    pub fn new(path: Vec<PathPart>, message: impl Into<String>) -> Self {
        Self { path, message: message.into() }
    }

    /// Returns the same diagnostic, seen from outside the section: `outer` leads to the section.
    #[must_use]
    pub fn within(self, outer: &[PathPart]) -> Self {
        Self { path: [outer, &self.path].concat(), message: self.message }
    }
}

impl From<PolicyError> for Diagnostic {
    fn from(PolicyError { path, problem }: PolicyError) -> Self {
        let message = match &problem {
            Problem::UnknownName { name, what, allowed } => {
                not_one_of(name, what, allowed.iter().map(String::as_str))
            }
            other => other.to_string(),
        };
        Self { path, message }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.path.is_empty() { "" } else { ": " };
        write!(formatter, "{}{colon}{}", PathPart::join(&self.path), self.message)
    }
}

/// Returns the message for a name that is none of those allowed: `"x" is not WHAT: must be one of …`, with
/// the name that was probably meant.
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

/// Returns the candidate that `name` is probably a misspelling of: with at most one edit in three characters,
/// a swap of neighbours being one edit. Two unrelated names mostly differ in more.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| distance * 3 <= candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_of_a_task_is_answered_with_the_one_that_was_meant() {
        let problem = Problem::UnknownName {
            name: "log-linear".to_owned(),
            what: "a fusion method",
            allowed: vec!["linear".to_owned(), "log_linear".to_owned()],
        };
        let error = PolicyError { path: vec!["fusion".into(), "method".into()], problem };
        assert_eq!(
            Diagnostic::from(error).within(&["tasks".into(), "a b".into()]).to_string(),
            "tasks.\"a b\".fusion.method: \"log-linear\" is not a fusion method (did you mean \"log_linear\"?): \
             must be one of linear, log_linear"
        );
    }

    #[test]
    fn only_near_names_are_suggested_and_long_lists_are_counted() {
        assert_eq!(nearest("siglip", ["dinov3", "siglip2"]), Some("siglip2"));
        assert_eq!(nearest("cloud", ["dinov3", "siglip2"]), None);
        let many: Vec<String> = (0..13).map(|index| format!("model{index}")).collect();
        let message = not_one_of("x", "a model", many.iter().map(String::as_str));
        assert_eq!(message, "\"x\" is not a model: must be one of 13");
    }
}
