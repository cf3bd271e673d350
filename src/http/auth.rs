//! The check that a request carries an accepted API key.

use std::future::{Ready, ready};

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::{FromRequest, HttpRequest, dev::Payload, web};

use super::respond::Refusal;
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};

/// A handler's argument that only requests with an accepted API key get past; every request does where no
/// keys are configured.
pub(super) struct Authorized;

impl FromRequest for Authorized {
    type Error = Refusal;
    type Future = Ready<Result<Self, Refusal>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let keys = request.app_data::<web::Data<Worker>>().and_then(|worker| worker.options.keys.as_ref());
        let admitted =
            keys.is_none_or(|keys| bearer_token(request.headers()).is_some_and(|key| keys.admits(key)));
        ready(if admitted {
            Ok(Self)
        } else {
            let detail = "an API key is needed: send it as \"Authorization: Bearer KEY\"";
            Err(Refusal::of(request, Problem::new(ProblemKind::Unauthorized, detail)))
        })
    }
}

fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}
