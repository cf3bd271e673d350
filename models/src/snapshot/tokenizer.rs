//! The tokenizer of a snapshot, from its `tokenizer.json`.

use std::path::PathBuf;

use tokenizers::Tokenizer;

use crate::ModelError;
use crate::snapshot::folder::Snapshot;

const FILE: &str = "tokenizer.json";

/// Opens the snapshot's tokenizer without padding or truncation; returns it with its path, for messages.
pub(crate) fn open(snapshot: &Snapshot) -> Result<(Tokenizer, PathBuf), ModelError> {
    let path = snapshot.path(FILE);
    let text = std::fs::read(&path).map_err(|source| ModelError::file(&path, source))?;
    let mut tokenizer = Tokenizer::from_bytes(text).map_err(|error| ModelError::malformed(&path, error))?;
    // A tokenizer that was used before it was saved keeps the padding and truncation of that use, but the
    // length is ours to set.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| ModelError::malformed(&path, error))?;
    Ok((tokenizer, path))
}

/// A tokenizer that turns texts into ids of one length, the form in which contrastive text towers are
/// trained.
#[derive(Debug)]
pub(crate) struct PaddingTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    end: i64,
    padding: i64,
    length: usize,
}

impl PaddingTokenizer {
    /// Loads a tokenizer that turns a text into `length` ids: truncated to fit, followed by `<eos>` and
    /// padded with `<pad>`.
    pub(crate) fn load(snapshot: &Snapshot, length: usize) -> Result<Self, ModelError> {
        let (tokenizer, path) = open(snapshot)?;
        let id = |token: &str| {
            let id = tokenizer.token_to_id(token).map(i64::from);
            id.ok_or_else(|| ModelError::malformed(&path, format!("has no token {token}")))
        };
        let (end, padding) = (id("<eos>")?, id("<pad>")?);
        Ok(Self { tokenizer, path, end, padding, length })
    }

    /// Returns the ids of one text.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<i64>, ModelError> {
        // The post-processor of the file is not used: published files differ in whether theirs adds `<bos>`.
        let encoding =
            self.tokenizer.encode(text, false).map_err(|error| ModelError::malformed(&self.path, error))?;
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        ids.truncate(self.length.saturating_sub(1));
        ids.push(self.end);
        ids.resize(self.length, self.padding);
        Ok(ids)
    }

    /// Returns the largest id that a text can produce; the embedding table must have a row for it.
    pub(crate) fn largest_id(&self) -> i64 {
        self.tokenizer.get_vocab(true).into_values().max().map_or(0, i64::from)
    }
}
