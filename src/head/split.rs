//! Splits a data set into images to train a head on and images for validation: whole groups, stratified by
//! label.

use std::collections::{BTreeMap, BTreeSet};

use crate::evaluate::splitmix64;

/// One group in this many of each label is for validation; at least one if there are two.
const VALIDATION_ONE_IN: usize = 5;
/// The number of labels that are named.
const NAMED_MAX: usize = 5;

/// A split of a data set, by the indices of its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) training: Vec<usize>,
    pub(crate) validation: Vec<usize>,
    /// The labels with a single group, which is in the training part.
    pub(crate) unvalidated: Vec<usize>,
}

/// Splits images by their groups and labels; a group belongs to the label of its first image. The same
/// arguments give the same split.
///
/// # Errors
/// When a label has no image to train on, or fewer than two labels can be validated.
pub(crate) fn split(
    groups: &[usize],
    labels: &[usize],
    names: &[String],
    seed: u64,
) -> Result<Split, String> {
    let shown: BTreeSet<usize> = labels.iter().copied().collect();
    let missing: Vec<usize> = (0..names.len()).filter(|label| !shown.contains(label)).collect();
    if !missing.is_empty() {
        let named = in_words(&missing, names);
        return Err(format!(
            "there are no images of {named}: a head needs images of every label of the task"
        ));
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
        (0..labels.len()).partition(|&image| chosen.contains(&groups[image]));
    let labels_of = |part: &[usize]| part.iter().map(|&image| labels[image]).collect::<BTreeSet<usize>>();
    if labels_of(&training).len() < names.len() || labels_of(&validation).len() < 2 {
        return Err(format!(
            "too few groups of images ({} groups of {} images): every label needs one for training, and at least two labels \
             need another for validation",
            label_of_group.len(),
            labels.len()
        ));
    }
    Ok(Split { training, validation, unvalidated })
}

impl Split {
    /// Names the labels that are not validated, up to a limit.
    pub(crate) fn unvalidated_in_words(&self, names: &[String]) -> String {
        in_words(&self.unvalidated, names)
    }
}

/// Names labels, up to a limit.
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

    /// Ten groups of three images of each of two labels.
    fn images() -> (Vec<usize>, Vec<usize>) {
        let groups = (0..60).map(|image| image / 3).collect();
        let labels = (0..60).map(|image| usize::from(image >= 30)).collect();
        (groups, labels)
    }

    #[test]
    fn whole_groups_of_every_label_are_held_out() {
        let (groups, labels) = images();
        let Split { training, validation, unvalidated } = split(&groups, &labels, &names(2), 1).unwrap();
        assert_eq!((training.len(), validation.len(), unvalidated), (48, 12, vec![]));
        for label in 0..2 {
            assert_eq!(validation.iter().filter(|&&image| labels[image] == label).count(), 6);
        }
        let kept: BTreeSet<usize> = validation.iter().map(|&image| groups[image]).collect();
        assert!(training.iter().all(|&image| !kept.contains(&groups[image])));
        let split = |seed| split(&groups, &labels, &names(2), seed).unwrap();
        assert_eq!(split(1), split(1));
        assert!((2..10).any(|seed| split(seed) != split(1)), "the seed decides which");
    }

    #[test]
    fn a_label_of_one_group_is_trained_on_only() {
        let (mut groups, mut labels) = images();
        groups.extend([20, 20]);
        labels.extend([2, 2]);
        let split = split(&groups, &labels, &names(3), 1).unwrap();
        assert_eq!(split.unvalidated, [2]);
        assert!(split.training.ends_with(&[60, 61]));
    }

    #[test]
    fn a_data_set_that_cannot_be_split_is_an_error() {
        let (groups, labels) = images();
        let reported =
            |groups: &[usize], labels: &[usize], count| split(groups, labels, &names(count), 0).unwrap_err();
        assert!(
            reported(&groups[..30], &labels[..30], 2)
                .contains("there are no images of \"label 1\": a head needs")
        );
        assert!(reported(&groups, &labels, 9).contains("\"label 6\", …"));
        assert!(
            reported(&[0, 0, 1, 1], &[0, 0, 1, 1], 2).contains("too few groups of images (2 groups of 4")
        );
        assert!(
            reported(&[0, 1, 2], &[0, 1, 1], 2).contains("too few groups"),
            "label 0 cannot be validated"
        );
    }
}
