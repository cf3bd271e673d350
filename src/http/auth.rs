//! API keys: who may ask.

use std::future::{Ready, ready};

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};

use super::Worker;
use super::respond::Refusal;
use crate::problem::{Problem, ProblemKind};

/// The digests of the keys. Comparing digests takes the same time whatever the keys have in common, and `blake3::Hash`
/// compares in constant time.
#[derive(Clone)]
pub struct ApiKeys(Vec<blake3::Hash>);

/// The variable that `api_keys_env` names does not hold keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("api_keys_env: the variable {0} holds no API key: must hold at least one, with commas between them")]
pub struct ApiKeysError(String);

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} API keys", self.0.len())
    }
}

impl ApiKeys {
    /// The keys that a variable of the environment holds.
    ///
    /// # Errors
    /// When it holds none: that everyone may ask is said by not naming a variable.
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

    fn admits(&self, key: &str) -> bool {
        let digest = blake3::hash(key.as_bytes());
        // Every key is compared, so that the time does not tell which one came close.
        self.0.iter().fold(false, |admitted, known| admitted | (*known == digest))
    }
}

/// In a handler's arguments: the request has a key, or needs none.
pub(super) struct Authorized;

impl FromRequest for Authorized {
    type Error = Refusal;
    type Future = Ready<Result<Self, Refusal>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let keys = request.app_data::<web::Data<Worker>>().and_then(|worker| worker.options.keys.as_ref());
        let admitted = keys.is_none_or(|keys| key(request.headers()).is_some_and(|key| keys.admits(key)));
        ready(if admitted {
            Ok(Self)
        } else {
            let detail = "an API key is needed: send it as \"Authorization: Bearer KEY\"";
            Err(Refusal::of(request, Problem::new(ProblemKind::Unauthorized, detail)))
        })
    }
}

fn key(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}
