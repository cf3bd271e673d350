//! Reads the encoded image out of a request's body: the body itself, a part of a form, or base64 in JSON.

use actix_multipart::{Multipart, MultipartError};
use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use actix_web::web::{Bytes, BytesMut};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use utoipa::ToSchema;

use super::body_budget::{BodyBudget, BodyReservation};
use crate::problem::{Problem, ProblemKind};

/// The name of the form part that holds the image.
const PART: &str = "image";
/// The bytes that a JSON body or a form may have besides the image.
const WRAPPING_BYTES_MAX: u64 = 16 * 1024;

/// The parameters of a generated text: in the query, or beside the image in a JSON body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct GenerateParams {
    /// A question, or a task such as `<CAPTION>` where the model has those.
    pub(super) prompt: Option<String>,
    /// The most tokens that are generated; 128 where absent.
    pub(super) max_new_tokens: Option<usize>,
    /// True if the text is streamed, as server-sent events.
    pub(super) stream: Option<bool>,
}

/// A JSON body.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRequest {
    /// The encoded image in base64, or as a data URL: `data:image/png;base64,…`.
    pub image: String,
    /// The prompt, for generated texts.
    #[serde(default)]
    pub prompt: Option<String>,
    /// The most tokens that are generated, for generated texts.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// True if the text is streamed, for generated texts.
    #[serde(default)]
    pub stream: Option<bool>,
}

/// Returns the problem of a body that arrived too slowly.
pub(super) fn too_slow(limit_ms: u64) -> Problem {
    let detail = format!("the body did not arrive within {limit_ms} ms (request_timeout_ms)");
    Problem::new(ProblemKind::SlowBody, detail)
}

/// The form in which a body holds its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// The body is the image.
    Raw,
    /// `multipart/form-data`.
    Form,
    /// `application/json`.
    Json,
}

impl BodyKind {
    /// Returns the kind that the headers declare.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported = |detail: String| Problem::new(ProblemKind::UnsupportedMediaType, detail);
        if let Some(encoding) = headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity") {
            return Err(unsupported(format!(
                "content-encoding {encoding:?}: must be absent: images are sent uncompressed"
            )));
        }
        let content_type = headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        let Some(content_type) = content_type else { return Ok(Self::Raw) };
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "multipart/form-data" => Ok(Self::Form),
            // The content type that curl sends by default with --data-binary.
            "application/octet-stream" | "application/x-www-form-urlencoded" | "" => Ok(Self::Raw),
            other if other.starts_with("image/") => Ok(Self::Raw),
            other => Err(unsupported(format!(
                "content-type {other:?}: must be image/*, application/octet-stream, multipart/form-data or application/json"
            ))),
        }
    }

    /// Returns the most bytes that a body with an image of `limit` bytes may have.
    fn body_limit(self, limit: u64) -> u64 {
        match self {
            Self::Raw => limit,
            Self::Form => limit.saturating_add(WRAPPING_BYTES_MAX),
            // Base64 has four characters for three bytes.
            Self::Json => limit.div_ceil(3).saturating_mul(4).saturating_add(WRAPPING_BYTES_MAX),
        }
    }

    /// Returns the bytes that are held for a body of `length` bytes: JSON is there together with its text, and the
    /// image that is decoded from that.
    fn held_bytes(self, length: u64) -> u64 {
        match self {
            Self::Raw | Self::Form => length,
            Self::Json => length.saturating_mul(2).saturating_add(length / 4 * 3),
        }
    }
}

/// Reads the image, of at most `limit` bytes, from a request that takes no parameters in its body.
pub(super) async fn image(
    headers: &HeaderMap,
    payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin + 'static,
    limit: u64,
    budget: &BodyBudget,
) -> Result<Bytes, Problem> {
    let (image, params) = image_with_params(headers, payload, limit, budget).await?;
    if params == GenerateParams::default() {
        return Ok(image);
    }
    let detail = "prompt, max_new_tokens and stream are for /v1/models/{model}/generate";
    Err(Problem::new(ProblemKind::BadRequest, detail))
}

/// Returns the sender's `content-length`.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads the image, of at most `limit` bytes, and the parameters that a JSON body has beside it. The image holds
/// its bytes of `budget` until its last clone is gone. Nothing is read of a body whose declared length is too
/// large, or more than the budget has.
pub(super) async fn image_with_params(
    headers: &HeaderMap,
    payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin + 'static,
    limit: u64,
    budget: &BodyBudget,
) -> Result<(Bytes, GenerateParams), Problem> {
    let mut params = GenerateParams::default();
    let kind = BodyKind::of(headers)?;
    let declared = declared_length(headers);
    if declared.is_some_and(|length| length > kind.body_limit(limit)) {
        return Err(Problem::too_many_bytes(limit));
    }
    let most = declared.unwrap_or_else(|| kind.body_limit(limit));
    let mut reservation = budget.open(kind.held_bytes(most))?;
    let bytes = match kind {
        BodyKind::Raw => collect(payload, declared, limit, &mut reservation).await?,
        BodyKind::Form => from_form(headers, payload, limit, &mut reservation).await?,
        BodyKind::Json => {
            // The error names the limit of the image, not that of the JSON around it.
            let body = collect(payload, declared, kind.body_limit(limit), &mut reservation).await;
            let body = body.map_err(|problem| match problem.kind {
                ProblemKind::TooLarge => Problem::too_many_bytes(limit),
                _ => problem,
            })?;
            reservation.hold(kind.held_bytes(body.len() as u64))?;
            let (bytes, in_body) = from_json(&body)?;
            params = in_body;
            bytes
        }
    };
    if bytes.len() as u64 > limit {
        return Err(Problem::too_many_bytes(limit));
    }
    Ok((reservation.kept_with(bytes), params))
}

/// Reads a body of a small declared length, which is not needed, so that its connection can be kept.
pub(super) async fn discard(
    mut payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
) -> Result<(), Problem> {
    while let Some(chunk) = payload.next().await {
        chunk.map_err(|error| incomplete(&error))?;
    }
    Ok(())
}

/// Returns the bytes of a stream, of which there may be at most `limit`. `declared` is the sender's
/// `content-length`.
async fn collect(
    mut stream: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    declared: Option<u64>,
    limit: u64,
    reservation: &mut BodyReservation,
) -> Result<Bytes, Problem> {
    // Memory that is not written to costs nothing yet.
    let mut bytes = BytesMut::with_capacity(usize::try_from(declared.unwrap_or(0).min(limit)).unwrap_or(0));
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|error| incomplete(&error))?;
        let length = (bytes.len() + chunk.len()) as u64;
        if length > limit {
            return Err(Problem::too_many_bytes(limit));
        }
        reservation.hold(length)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

async fn from_form(
    headers: &HeaderMap,
    payload: impl Stream<Item = Result<Bytes, PayloadError>> + 'static,
    limit: u64,
    reservation: &mut BodyReservation,
) -> Result<Bytes, Problem> {
    let unreadable = |error: MultipartError| match error {
        MultipartError::Payload(error) => incomplete(&error),
        other => Problem::new(ProblemKind::BadRequest, format!("the form cannot be read: {other}")),
    };
    let mut form = Multipart::new(headers, payload);
    // The bytes left of the whole body's limit, so that unread parts are counted too.
    let mut left = BodyKind::Form.body_limit(limit);
    while let Some(part) = form.next().await {
        let mut part = part.map_err(unreadable)?;
        let is_image = part.name() == Some(PART);
        let mut bytes = BytesMut::new();
        while let Some(chunk) = part.next().await {
            let chunk = chunk.map_err(unreadable)?;
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| Problem::too_many_bytes(limit))?;
            if is_image {
                reservation.hold((bytes.len() + chunk.len()) as u64)?;
                bytes.extend_from_slice(&chunk);
            }
        }
        if is_image {
            return Ok(bytes.freeze());
        }
    }
    Err(Problem::new(
        ProblemKind::BadRequest,
        format!("the form has no part named {PART:?}: must have one with the image"),
    ))
}

/// Returns the image of a JSON body, and the parameters beside it.
fn from_json(body: &[u8]) -> Result<(Bytes, GenerateParams), Problem> {
    let bad = |detail: String| Problem::new(ProblemKind::BadRequest, detail);
    let request: ImageRequest = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not the expected JSON: {error}")))?;
    let text = request.image.trim();
    let text = match text.strip_prefix("data:") {
        Some(url) => {
            let (_, data) = url.split_once(";base64,").ok_or_else(|| {
                bad("image: a data URL must be of the form data:TYPE;base64,DATA".to_owned())
            })?;
            data
        }
        None => text,
    };
    let bytes = STANDARD.decode(text).map_err(|error| bad(format!("image: not base64: {error}")))?;
    let ImageRequest { prompt, max_new_tokens, stream, .. } = request;
    Ok((Bytes::from(bytes), GenerateParams { prompt, max_new_tokens, stream }))
}

fn incomplete(error: &PayloadError) -> Problem {
    Problem::new(ProblemKind::BadRequest, format!("the body is incomplete: {error}"))
}
