//! Which pictures a head is trained on, and which say when to stop: whole groups, a part of those of every label.

use std::collections::{BTreeMap, BTreeSet};

use crate::evaluate::splitmix64;

/// One group in so many of each label is for validation; at least one where there are two.
const VALIDATION_ONE_IN: usize = 5;
/// So many labels are named.
const NAMED_MAX: usize = 5;

/// Positions of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) training: Vec<usize>,
    pub(crate) validation: Vec<usize>,
    /// Labels of one group alone, which are in training only.
    pub(crate) unvalidated: Vec<usize>,
}

/// Divides pictures by their groups and labels; a group counts for the label of its first picture. The same arguments
/// give the same parts.
///
/// # Errors
/// When a label has no picture to train on, or fewer than two labels can be validated.
pub(crate) fn divide(
    groups: &[usize],
    labels: &[usize],
    names: &[String],
    seed: u64,
) -> Result<Division, String> {
    let shown: BTreeSet<usize> = labels.iter().copied().collect();
    let missing: Vec<usize> = (0..names.len()).filter(|label| !shown.contains(label)).collect();
    if !missing.is_empty() {
        let named = in_words(&missing, names);
        return Err(format!("no picture shows {named}: a head needs pictures of every label of the task"));
    }
    let mut label_of_group = BTreeMap::new();
    for (&group, &label) in groups.iter().zip(labels) {
        label_of_group.entry(group).or_insert(label);
    }
    let mut groups_of_label = BTreeMap::<usize, Vec<(u64, usize)>>::new();
    for (&group, &label) in &label_of_group {
        let drawn = splitmix64(splitmix64(seed) ^ group as u64);
        groups_of_label.entry(label).or_default().push((drawn, group));
    }
    let mut chosen = BTreeSet::new();
    let mut unvalidated = Vec::new();
    for (label, mut drawn) in groups_of_label {
        drawn.sort_unstable();
        if drawn.len() == 1 {
            unvalidated.push(label);
        } else {
            chosen
                .extend(drawn.iter().take(drawn.len().div_ceil(VALIDATION_ONE_IN)).map(|(_, group)| *group));
        }
    }
    let (validation, training): (Vec<usize>, Vec<usize>) =
        (0..labels.len()).partition(|&picture| chosen.contains(&groups[picture]));
    let labels_of = |part: &[usize]| part.iter().map(|&picture| labels[picture]).collect::<BTreeSet<usize>>();
    if labels_of(&training).len() < names.len() || labels_of(&validation).len() < 2 {
        return Err(format!(
            "there are fewer groups of pictures than are needed ({} of {} pictures): every label needs one to be trained \
             on, and two labels at least another to be validated on",
            label_of_group.len(),
            labels.len()
        ));
    }
    Ok(Division { training, validation, unvalidated })
}

impl Division {
    /// The labels that are not validated, not too many of them.
    pub(crate) fn unvalidated_in_words(&self, names: &[String]) -> String {
        in_words(&self.unvalidated, names)
    }
}

/// The names of some labels, not too many.
fn in_words(labels: &[usize], names: &[String]) -> String {
    let named = labels.iter().take(NAMED_MAX).filter_map(|&label| names.get(label));
    let named: Vec<String> = named.map(|name| format!("{name:?}")).collect();
    let more = if labels.len() > NAMED_MAX { ", …" } else { "" };
    format!("{}{more}", named.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|label| format!("label {label}")).collect()
    }

    /// Ten groups of three pictures of each of two labels.
    fn pictures() -> (Vec<usize>, Vec<usize>) {
        let groups = (0..60).map(|picture| picture / 3).collect();
        let labels = (0..60).map(|picture| usize::from(picture >= 30)).collect();
        (groups, labels)
    }

    #[test]
    fn whole_groups_of_every_label_are_kept_back() {
        let (groups, labels) = pictures();
        let Division { training, validation, unvalidated } = divide(&groups, &labels, &names(2), 1).unwrap();
        assert_eq!((training.len(), validation.len(), unvalidated), (48, 12, vec![]));
        for label in 0..2 {
            assert_eq!(validation.iter().filter(|&&picture| labels[picture] == label).count(), 6);
        }
        let kept: BTreeSet<usize> = validation.iter().map(|&picture| groups[picture]).collect();
        assert!(training.iter().all(|&picture| !kept.contains(&groups[picture])));
        let division = |seed| divide(&groups, &labels, &names(2), seed).unwrap();
        assert_eq!(division(1), division(1));
        assert!((2..10).any(|seed| division(seed) != division(1)), "the seed decides which");
    }

    #[test]
    fn a_label_of_one_group_is_trained_on_only() {
        let (mut groups, mut labels) = pictures();
        groups.extend([20, 20]);
        labels.extend([2, 2]);
        let division = divide(&groups, &labels, &names(3), 1).unwrap();
        assert_eq!(division.unvalidated, [2]);
        assert!(division.training.ends_with(&[60, 61]));
    }

    #[test]
    fn what_cannot_be_divided_is_told() {
        let (groups, labels) = pictures();
        let told =
            |groups: &[usize], labels: &[usize], count| divide(groups, labels, &names(count), 0).unwrap_err();
        assert!(told(&groups[..30], &labels[..30], 2).contains("no picture shows \"label 1\": a head needs"));
        assert!(told(&groups, &labels, 9).contains("\"label 6\", …"));
        assert!(
            told(&[0, 0, 1, 1], &[0, 0, 1, 1], 2)
                .contains("fewer groups of pictures than are needed (2 of 4")
        );
        assert!(told(&[0, 1, 2], &[0, 1, 1], 2).contains("fewer groups"), "label 0 cannot be validated");
    }
}
