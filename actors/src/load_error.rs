//! The error of models that cannot be used, all of them at once.

use concord_policy::VoteFailure;

/// The error of models that could not be loaded, or cannot answer a task that asks them: all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct LoadError {
    /// The models' names, each with what was wrong.
    pub failures: Vec<(String, VoteFailure)>,
}

impl LoadError {
    /// Sorts the failures by the models' names.
    pub(crate) fn of(mut failures: Vec<(String, VoteFailure)>) -> Self {
        failures.sort_by(|(left, _), (right, _)| left.cmp(right));
        Self { failures }
    }

    fn text(&self) -> String {
        let lines: Vec<String> =
            self.failures.iter().map(|(name, error)| format!("model {name}: {error}")).collect();
        lines.join("\n")
    }
}
