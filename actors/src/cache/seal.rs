//! The seal of a stored value: a tag over the value and its key that only those who know the secret can make.

use crate::digest::Digest;

/// The purpose of the key that is derived from the secret, as `blake3::derive_key` wants it.
const CONTEXT: &str = "concord 2026-12-01 seal of a cached value";

/// The length of a tag.
pub(super) const TAG_BYTES: usize = blake3::OUT_LEN;

/// The key of the seals.
#[derive(Clone)]
pub(super) struct Seal([u8; blake3::KEY_LEN]);

impl std::fmt::Debug for Seal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Seal").finish_non_exhaustive()
    }
}

impl Seal {
    /// Derives the key from a secret. Without one anybody can derive it: such a seal shows damage, and a
    /// value under another key than its own, but no forgery.
    pub(super) fn new(secret: Option<&[u8]>) -> Self {
        Self(blake3::derive_key(CONTEXT, secret.unwrap_or_default()))
    }

    /// Returns the tag of a value that is stored under this key. Tags compare in constant time.
    pub(super) fn tag(&self, key: &Digest, payload: &[u8]) -> blake3::Hash {
        // The key has a fixed length, so that no two pairs are the same bytes.
        blake3::Hasher::new_keyed(&self.0).update(key.as_bytes()).update(payload).finalize()
    }
}
