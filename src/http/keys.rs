//! The API keys of `[server] api_keys_env`; this file knows nothing of requests.

/// The digests of the accepted API keys.
///
/// Digests are compared instead of the keys: that takes the same time whatever the keys have in common, and
/// `blake3::Hash` compares in constant time.
#[derive(Clone)]
pub struct ApiKeys(Vec<blake3::Hash>);

/// An environment variable, named by `api_keys_env`, that holds no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("api_keys_env: the variable {0} holds no API key: must hold at least one, separated by commas")]
pub struct ApiKeysError(String);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} API keys", self.0.len())
    }
}

impl ApiKeys {
    /// Reads the keys from an environment variable.
    ///
    /// # Errors
    /// Returns an error if the variable holds no key: to admit everyone, no variable is named at all.
    pub fn from_env(variable: &str) -> Result<Self, ApiKeysError> {
        let text = std::env::var(variable).unwrap_or_default();
        let keys: Vec<blake3::Hash> = text
            .split(',')
            .map(str::trim)
            .filter(|key| !key.is_empty())
            .map(|key| blake3::hash(key.as_bytes()))
            .collect();
        if keys.is_empty() { Err(ApiKeysError(variable.to_owned())) } else { Ok(Self(keys)) }
    }

    /// Returns whether `key` is one of the accepted keys.
    pub(super) fn admits(&self, key: &str) -> bool {
        let digest = blake3::hash(key.as_bytes());
        // Every key is compared, so that the time taken does not reveal which one matched.
        self.0.iter().fold(false, |admitted, known| admitted | (*known == digest))
    }
}
