//! The snapshot's `tokenizer.json`, with the tokens that microsoft's processor adds to it.

use std::collections::HashSet;
use std::path::PathBuf;

use tokenizers::{AddedToken, Tokenizer};

use crate::ModelError;
use crate::snapshot::folder::Snapshot;

/// The number of bins per axis, and of location tokens.
pub(super) const BINS: i64 = 1000;

/// The tokens that microsoft's `processing_florence2.py` adds in this order, with the location tokens between
/// both lists, because its `tokenizer.json` is BART's own.
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

/// The tokenizer, and the ids of its location tokens.
#[derive(Debug)]
pub(super) struct TextCodec {
    tokenizer: Tokenizer,
    path: PathBuf,
    /// All tokens that are not text: locations, task tokens, `<s>`.
    added: HashSet<u32>,
    first_location: i64,
}

impl TextCodec {
    /// Loads the tokenizer of a model with a table of `vocabulary` tokens.
    ///
    /// # Errors
    /// Fails when the file is malformed, lacks consecutive location tokens, or has ids beyond the table.
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

    /// Returns the ids of a text, without `<s>` and `</s>`; special tokens in the text stand for themselves.
    pub(super) fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        let encoding =
            self.tokenizer.encode(text, false).map_err(|error| ModelError::malformed(&self.path, error))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Returns the text of ids, with special tokens spelled out.
    pub(super) fn decode(&self, ids: &[i64]) -> Result<String, ModelError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, false).map_err(|error| ModelError::malformed(&self.path, error))
    }

    /// Returns the text of ids without special tokens, trimmed.
    pub(super) fn decode_text(&self, ids: &[i64]) -> Result<String, ModelError> {
        let is_text = |id: &i64| u32::try_from(*id).is_ok_and(|id| !self.added.contains(&id));
        let text: Vec<i64> = ids.iter().copied().filter(is_text).collect();
        Ok(self.decode(&text)?.trim().to_owned())
    }

    /// Returns the id of `<loc_0>`; those of the other locations follow it.
    pub(super) fn first_location(&self) -> i64 {
        self.first_location
    }

    /// Returns the bin that a token stands for, if it is a location.
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::TextCodec;
    use crate::snapshot::folder::Snapshot;

    #[test]
    fn a_tokenizer_without_the_tokens_of_the_tasks_is_given_them() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/parity/florence2/snapshot/tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture).unwrap()).unwrap();
        // BART's own tokens are `<s>`, `<pad>`, `</s>`, `<unk>` and `<mask>`, the last being 364 here.
        json["added_tokens"].as_array_mut().unwrap().truncate(5);
        json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() <= 364);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let codec = TextCodec::load(&Snapshot::open(folder.path()).unwrap(), 365 + 1024).unwrap();
        assert_eq!(
            codec.encode("<s><od><loc_0><loc_999><cap><and></s>").unwrap(),
            [0, 365, 369, 1368, 1369, 1388, 2]
        );
        assert_eq!(
            (codec.first_location(), codec.location(1368), codec.location(1369)),
            (369, Some(999), None)
        );
        let too_small = TextCodec::load(&Snapshot::open(folder.path()).unwrap(), 365 + 1023);
        assert!(too_small.err().unwrap().to_string().contains("has the id 1388"));
    }

    #[test]
    fn text_is_what_is_left_without_the_special_tokens() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parity/florence2/snapshot");
        let codec = TextCodec::load(&Snapshot::open(&fixture).unwrap(), 1408).unwrap();
        let text = "</s><s>a cat<loc_1><loc_2>é</s>";
        let ids = codec.encode(text).unwrap();
        assert_eq!(codec.decode(&ids).unwrap(), text);
        assert_eq!(codec.decode_text(&ids).unwrap(), "a caté");
    }
}
