//! The entry point of the fuzzer: the reader of bodies, without a server around it.

use actix_web::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use actix_web::web::Bytes;
use futures::executor::block_on;
use futures::stream;

use super::body;
use super::body_budget::BodyBudget;
use crate::problem::Problem;

/// Returns the image in a body of this content type, which arrives in two pieces.
///
/// # Errors
/// Returns the problem that a client would get.
pub fn image(content_type: &'static str, body: &[u8], limit: u64) -> Result<Bytes, Problem> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    let (start, end) = body.split_at(body.len() / 2);
    let pieces = [start, end].map(|piece| Ok(Bytes::copy_from_slice(piece)));
    let budget = BodyBudget::new(u64::from(u32::MAX));
    block_on(body::image(&headers, stream::iter(pieces), limit, &budget))
}
