//! Digests, and the fields that are hashed into them. Knows nothing of what they identify.

use std::fmt;

/// A BLAKE3 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Returns the key of the result that `self`, the digest of a way to an answer, has for the image of this
    /// digest.
    #[must_use]
    pub fn for_image(&self, image: &Self) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&image.0);
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns the bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Writes the digest in hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A hash of fields in which no two lists of fields are the same bytes: each has its length before it.
pub(crate) struct Fields(blake3::Hasher);

impl Fields {
    /// Starts the hash for one kind of value of this version of Concord; another version's numerics may
    /// differ.
    pub(crate) fn new(kind: &str) -> Self {
        let mut fields = Self(blake3::Hasher::new());
        fields.text(env!("CARGO_PKG_VERSION")).text(kind);
        fields
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    pub(crate) fn number(&mut self, number: u64) -> &mut Self {
        self.0.update(&number.to_le_bytes());
        self
    }

    pub(crate) fn real(&mut self, number: f64) -> &mut Self {
        self.number(number.to_bits())
    }

    pub(crate) fn reals(&mut self, numbers: &[f32]) -> &mut Self {
        self.number(numbers.len() as u64);
        for number in numbers {
            self.0.update(&number.to_le_bytes());
        }
        self
    }

    pub(crate) fn finish(&self) -> Digest {
        Digest(*self.0.finalize().as_bytes())
    }
}
