//! The snapshot's `tokenizer.json`, with the tokens that microsoft's processor adds to it.

use std::collections::HashSet;
use std::path::PathBuf;

use tokenizers::{AddedToken, Tokenizer};

use crate::ModelError;
use crate::snapshot::Snapshot;

/// Bins per axis, and so many location tokens.
pub(super) const BINS: i64 = 1000;

/// Added in this order, with the location tokens between both lists, by microsoft's `processing_florence2.py`: its
/// `tokenizer.json` is BART's own.
const TOKENS_BEFORE_LOCATIONS: [&str; 4] = ["<od>", "</od>", "<ocr>", "</ocr>"];
const TOKENS_AFTER_LOCATIONS: [&str; 20] = [
    "<cap>",
    "</cap>",
    "<ncap>",
    "</ncap>",
    "<dcap>",
    "</dcap>",
    "<grounding>",
    "</grounding>",
    "<seg>",
    "</seg>",
    "<sep>",
    "<region_cap>",
    "</region_cap>",
    "<region_to_desciption>",
    "</region_to_desciption>",
    "<proposal>",
    "</proposal>",
    "<poly>",
    "</poly>",
    "<and>",
];

#[derive(Debug)]
pub(super) struct TextCodec {
    tokenizer: Tokenizer,
    path: PathBuf,
    /// All tokens that are no text: locations, task tokens, `<s>`.
    added: HashSet<u32>,
    first_location: i64,
}

impl TextCodec {
    /// Of a model with a table of `vocabulary` tokens.
    pub(super) fn load(snapshot: &Snapshot, vocabulary: i64) -> Result<Self, ModelError> {
        let path = snapshot.path("tokenizer.json");
        let text = std::fs::read(&path).map_err(|source| ModelError::file(&path, source))?;
        let malformed = |message: String| ModelError::malformed(&path, message);
        let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| malformed(error.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| malformed(error.to_string()))?;
        if tokenizer.token_to_id("<loc_0>").is_none() {
            tokenizer.add_special_tokens(&microsoft_tokens());
        }
        let location = |index: i64| tokenizer.token_to_id(&format!("<loc_{index}>")).map(i64::from);
        let (Some(first_location), Some(last)) = (location(0), location(BINS - 1)) else {
            return Err(malformed("has no location tokens <loc_0> to <loc_999>".to_owned()));
        };
        if last - first_location != BINS - 1 {
            return Err(malformed("<loc_0> to <loc_999> do not follow each other".to_owned()));
        }
        let largest = tokenizer.get_vocab(true).into_values().max().map_or(0, i64::from);
        if largest >= vocabulary {
            return Err(malformed(format!("has the id {largest}, the model ids under {vocabulary}")));
        }
        let added = tokenizer.get_added_tokens_decoder().into_keys().collect();
        Ok(Self { tokenizer, path, added, first_location })
    }

    /// The ids of a text, without `<s>` and `</s>`; special tokens in the text are themselves.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding =
            self.tokenizer.encode(text, false).map_err(|error| ModelError::malformed(&self.path, error))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The text with special tokens as they are written.
    pub(super) fn decode(&self, ids: &[i64]) -> Result<String, ModelError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, false).map_err(|error| ModelError::malformed(&self.path, error))
    }

    /// The text alone.
    pub(super) fn decode_text(&self, ids: &[i64]) -> Result<String, ModelError> {
        let is_text = |id: &i64| u32::try_from(*id).is_ok_and(|id| !self.added.contains(&id));
        let text: Vec<i64> = ids.iter().copied().filter(is_text).collect();
        Ok(self.decode(&text)?.trim().to_owned())
    }

    /// The id of `<loc_0>`; those of the other locations follow it.
    pub(super) fn first_location(&self) -> i64 {
        self.first_location
    }

    /// Which bin a token stands for, if it is a location.
    pub(super) fn location(&self, id: i64) -> Option<i64> {
        Some(id - self.first_location).filter(|bin| (0..BINS).contains(bin))
    }
}

fn microsoft_tokens() -> Vec<AddedToken> {
    let locations = (0..BINS).map(|index| format!("<loc_{index}>"));
    let before = TOKENS_BEFORE_LOCATIONS.into_iter().map(str::to_owned);
    let after = TOKENS_AFTER_LOCATIONS.into_iter().map(str::to_owned);
    before.chain(locations).chain(after).map(|token| AddedToken::from(token, true)).collect()
}
