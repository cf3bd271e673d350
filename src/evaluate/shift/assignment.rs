//! Assigns corruptions to images.

use std::cmp::Reverse;

use concord_actors::Digest;

use super::Corruption;

/// The number of corruptions that are named one by one.
const NAMED_MAX: usize = 6;

/// A plan of how images are corrupted before models are asked about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CorruptionPlan {
    /// The images stay clean.
    None,
    /// All images get the same corruption.
    Same(Corruption),
    /// Each image gets one of several corruptions, by a hash of its file.
    Assigned {
        /// The corruptions, each once.
        corruptions: Vec<Corruption>,
        /// The place, in the image's own order of the corruptions, of the one that it gets.
        round: usize,
    },
}

/// Returns a plan for each of `copies` copies of the images, so that every copy of an image gets another
/// corruption; no more plans than there are corruptions.
pub(crate) fn assigned(corruptions: &[Corruption], copies: usize) -> Vec<CorruptionPlan> {
    let rounds = 0..copies.min(corruptions.len());
    rounds.map(|round| CorruptionPlan::Assigned { corruptions: corruptions.to_vec(), round }).collect()
}

impl CorruptionPlan {
    /// Returns the corruption of the image whose file has this digest.
    pub(crate) fn of(&self, original: &Digest) -> Option<Corruption> {
        match self {
            Self::None => None,
            Self::Same(corruption) => Some(*corruption),
            // Rendezvous hashing (Thaler and Ravishankar 1998): whatever the order of the corruptions, and if
            // one is added, nearly all images keep theirs, and the stored votes on them stay valid. The word
            // in front keeps these hashes apart from those that seed the random numbers within a corruption;
            // changing it would invalidate stored votes.
            Self::Assigned { corruptions, round } => {
                let mut assigned = corruptions.clone();
                assigned.sort_by_cached_key(|corruption| {
                    Reverse(Digest::of(format!("dealt {}", corruption.name()).as_bytes()).for_image(original))
                });
                assigned.get(*round).copied()
            }
        }
    }

    /// Returns the name of the corruption in messages; `None` if the images are clean.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Same(corruption) => Some(corruption.name()),
            Self::Assigned { .. } => Some("corrupted".to_owned()),
        }
    }
}

/// Names the corruptions, as "one of blur 1, blur 2", or says how many there are.
pub(crate) fn one_of(corruptions: &[Corruption]) -> String {
    match corruptions {
        [corruption] => corruption.name(),
        few if few.len() <= NAMED_MAX => {
            let names: Vec<String> = few.iter().map(|corruption| corruption.name()).collect();
            format!("one of {}", names.join(", "))
        }
        many => format!("one of {} corruptions", many.len()),
    }
}
