//! Which of the corruptions each of many pictures gets.

use std::cmp::Reverse;

use concord_actors::Digest;

use super::Corruption;

/// So many corruptions are named one by one.
const NAMED_MAX: usize = 6;

/// What becomes of pictures before models are asked about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Worsening {
    /// They stay as they are.
    None,
    /// All are made worse in the same way.
    Same(Corruption),
    /// Each is made worse in one of these ways: the one that it is dealt first, or a later one.
    Dealt {
        /// Each of them once.
        corruptions: Vec<Corruption>,
        /// How many it was dealt before.
        round: usize,
    },
}

/// As many copies of each picture as that, each made worse in another of these ways; no more than there are ways.
pub(crate) fn dealt(corruptions: &[Corruption], copies: usize) -> Vec<Worsening> {
    let rounds = 0..copies.min(corruptions.len());
    rounds.map(|round| Worsening::Dealt { corruptions: corruptions.to_vec(), round }).collect()
}

impl Worsening {
    /// What becomes of the picture whose file has this digest.
    pub(crate) fn of(&self, original: &Digest) -> Option<Corruption> {
        match self {
            Self::None => None,
            Self::Same(corruption) => Some(*corruption),
            // By hashes ("rendezvous hashing", Thaler and Ravishankar 1998): in whatever order they are given, and with one
            // more of them, nearly all pictures get what they got before, and the votes on them stay good. The word keeps
            // them apart from the hashes that chance within a corruption is drawn from.
            Self::Dealt { corruptions, round } => {
                let mut dealt = corruptions.clone();
                dealt.sort_by_cached_key(|corruption| {
                    Reverse(Digest::of(format!("dealt {}", corruption.name()).as_bytes()).for_image(original))
                });
                dealt.get(*round).copied()
            }
        }
    }

    /// What messages call the pictures; nothing where they are as they are.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Same(corruption) => Some(corruption.name()),
            Self::Dealt { .. } => Some("made worse".to_owned()),
        }
    }
}

/// "one of blur 1, blur 2", or how many there are.
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
