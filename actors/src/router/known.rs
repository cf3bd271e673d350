//! The values that the cache has for an image, as far as they fit the policy that asks: a store that others
//! can write to may hold anything.

use std::sync::Arc;

use concord_policy::{ModelOutput, Policy, Verdict, verdict_fits};

use crate::cache::{Lookup, Value};
use crate::metrics::{CacheError, Metrics};

/// The cached values that fit.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known {
    pub(super) verdict: Option<Arc<Verdict>>,
    /// The votes, in the order of the policy's members; none where there is a verdict.
    pub(super) votes: Vec<Option<ModelOutput>>,
    /// The number of values that did not fit.
    mismatches: usize,
}

impl Known {
    /// Takes what fits out of a lookup. `feature_lengths` are the lengths of the models' features, as far as
    /// they are known, in the order of the policy's members.
    pub(super) fn fitting(
        found: Lookup,
        policy: &Policy,
        feature_lengths: impl IntoIterator<Item = Option<usize>>,
    ) -> Self {
        let mut known = Self::default();
        known.verdict = known.checked(found.verdict, |value| fitting_verdict(value, policy));
        if known.verdict.is_some() {
            return known;
        }
        let labels = policy.labels().len();
        for (value, feature_length) in found.votes.into_iter().zip(feature_lengths) {
            let vote = known.checked(value, |value| fitting_vote(value, labels, feature_length));
            known.votes.push(vote);
        }
        known
    }

    /// Returns what `fits` takes out of a value, and notes a value out of which it takes nothing.
    fn checked<T>(&mut self, value: Option<Value>, fits: impl FnOnce(Value) -> Option<T>) -> Option<T> {
        let checked = fits(value?);
        self.mismatches += usize::from(checked.is_none());
        checked
    }

    /// Counts a lookup of a verdict and, where there is none, of `votes` votes.
    pub(super) fn count(&self, votes: usize, metrics: &Metrics) {
        let mismatches = metrics.cache_errors.with_label_values(&[CacheError::Mismatch.name()]);
        mismatches.inc_by(self.mismatches as u64);
        let lookups = |kind: &str, outcome: &str| metrics.cache_lookups.with_label_values(&[kind, outcome]);
        if self.verdict.is_some() {
            lookups("verdict", "hit").inc();
            return;
        }
        let hits = self.votes.iter().flatten().count();
        lookups("verdict", "miss").inc();
        lookups("vote", "hit").inc_by(hits as u64);
        lookups("vote", "miss").inc_by(votes.saturating_sub(hits) as u64);
    }
}

fn fitting_verdict(value: Value, policy: &Policy) -> Option<Arc<Verdict>> {
    match value {
        Value::Verdict(verdict) if verdict_fits(&verdict, policy) => Some(verdict),
        _ => None,
    }
}

fn fitting_vote(value: Value, labels: usize, feature_length: Option<usize>) -> Option<ModelOutput> {
    match value {
        Value::Vote(output) if output.fits(labels, feature_length) => Some(output),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use concord_policy::{Context, Decision, TaskSection, Vote, decide};

    use super::*;

    /// Returns a policy of one stage with one model.
    fn policy(labels: &[&str]) -> Policy {
        let section: TaskSection = serde_json::from_value(serde_json::json!({
            "question": "?", "labels": labels, "stages": [{ "models": ["a"] }],
        }))
        .unwrap();
        Policy::from_section(&section, &BTreeSet::from(["a".to_owned()])).unwrap()
    }

    fn vote(logits: usize) -> Value {
        Value::Vote(ModelOutput::from(vec![0.5; logits]))
    }

    /// Returns the verdict on so many labels.
    fn verdict(labels: usize) -> Value {
        let names: Vec<String> = (0..labels).map(|label| label.to_string()).collect();
        let policy = policy(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let votes = [Vote::known(Arc::from("a"), ModelOutput::from(vec![0.5; labels]))];
        match decide(&policy, &votes, &Context::default()) {
            Decision::Verdict(verdict) => Value::Verdict(Arc::new(verdict.as_cached())),
            other => panic!("no verdict: {other:?}"),
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_a_counted_miss() {
        let policy = policy(&["no", "yes"]);
        for (case, of_verdict, of_vote, expected) in [
            ("nothing", None, None, (false, false, 0)),
            ("a verdict", Some(verdict(2)), Some(vote(2)), (true, false, 0)),
            ("a vote", None, Some(vote(2)), (false, true, 0)),
            ("a verdict on three labels", Some(verdict(3)), Some(vote(2)), (false, true, 1)),
            ("a vote of three logits", None, Some(vote(3)), (false, false, 1)),
            ("a vote of one logit", None, Some(vote(1)), (false, false, 1)),
            ("both of another shape", Some(verdict(43)), Some(vote(43)), (false, false, 2)),
            ("a vote for a verdict", Some(vote(2)), Some(vote(2)), (false, true, 1)),
            ("a verdict for a vote", None, Some(verdict(2)), (false, false, 1)),
        ] {
            let found = Lookup { verdict: of_verdict, votes: vec![of_vote] };
            let known = Known::fitting(found, &policy, [None]);
            let vote = known.votes.first().is_some_and(Option::is_some);
            assert_eq!((known.verdict.is_some(), vote, known.mismatches), expected, "{case}");
        }
    }
}
