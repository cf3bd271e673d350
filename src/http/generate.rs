//! `POST /v1/models/{model}/generate`: a text about an image, whole or piece by piece.

use std::time::Instant;

use actix_web::web::{Bytes, Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use concord_actors::{TextEvent, Write, Writing, Written};
use concord_models::{GenerateRequest, Region};
use futures::Stream;
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;
use utoipa::ToSchema;

use super::auth::Authorized;
use super::respond::{ProblemBody, Refusal, Reply};
use super::{Worker, body};
use crate::problem::{Problem, ProblemKind};
use crate::telemetry::RequestContext;
use crate::verdict::in_milliseconds;

/// Where it is served.
pub(super) const PATH: &str = "/v1/models/{model}/generate";
/// What its span is called.
const SPAN: &str = "POST /v1/models/{model}/generate";
/// A few sentences.
const NEW_TOKENS: usize = 128;
/// A model writes for one reader at a time, and votes for nobody meanwhile.
const NEW_TOKENS_MAX: usize = 1024;
/// Longer than any question about a picture.
const PROMPT_BYTES_MAX: usize = 8 * 1024;

/// What to write: in the address, or beside the image in a JSON body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Writ {
    /// A question, or a task such as `<CAPTION>` where the model has those.
    pub(super) prompt: Option<String>,
    /// At most so many tokens are written; 128 where absent.
    pub(super) max_new_tokens: Option<usize>,
    /// Whether the text is sent piece by piece, as server-sent events.
    pub(super) stream: Option<bool>,
}

/// What a model wrote.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextReport {
    /// The request, as logs and spans call it: a UUIDv7.
    request_id: String,
    /// The request's trace, as Jaeger calls it.
    trace_id: String,
    /// The model's name.
    model: String,
    /// The text, without special tokens.
    text: String,
    /// What it says about parts of the image, in pixels: each with a `box` (left, top, right, bottom) or a `quad`.
    #[schema(value_type = Vec<Object>)]
    regions: Vec<Region>,
    /// How many tokens were read, those of the image included.
    prompt_tokens: usize,
    /// How many tokens were written.
    new_tokens: usize,
    /// Whether the text ended by itself.
    finished: bool,
    /// Where the time went.
    milliseconds: TextMilliseconds,
}

/// What a text took, in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
struct TextMilliseconds {
    /// Ready, and waiting for the model.
    queue: f64,
    /// In the model.
    model: f64,
}

/// Writes a text about the image in the body.
#[utoipa::path(
    post, path = "/v1/models/{model}/generate", tag = "models",
    params(("model" = String, Path, description = "The model's name in ensemble.toml"),
        ("prompt" = Option<String>, Query, description = "A question, or a task such as `<CAPTION>`"),
        ("max_new_tokens" = Option<usize>, Query, description = "At most so many tokens are written; 128 where absent"),
        ("stream" = Option<bool>, Query, description = "Whether the text is sent piece by piece")),
    request_body(content(
        (Vec<u8> = "image/*"), (Vec<u8> = "application/octet-stream"), (Vec<u8> = "multipart/form-data"),
        (body::ImageRequest = "application/json"))),
    responses(
        (status = 200, description = "The text; with `stream`, events whose data are {\"text\": …}, and at the end the event \
            `done` with the whole or `error` with the problem", body = TextReport),
        (status = 400, description = "Not an image, or no prompt that the model understands", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 404, description = "No such model, or it writes no texts", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 429, description = "Busy", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "Not ready, or the model failed", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 504, description = "Not ended in time", body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn generate(
    request: HttpRequest,
    _authorized: Authorized,
    model: Path<String>,
    writ: Query<Writ>,
    payload: Payload,
    worker: Data<Worker>,
) -> Result<HttpResponse, Refusal> {
    let arrived = Instant::now();
    let context = worker.context(&request, SPAN);
    let reply = Reply::new(&request, &context, &worker.draining);
    let model = model.into_inner();
    let begun = begin(&request, &model, writ.into_inner(), payload, &worker, &context, arrived).await;
    let (mut writing, streams) = match begun {
        Ok(begun) => begun,
        Err(problem) => return Ok(reply.problem(&problem)),
    };
    if streams {
        return Ok(reply.events(pieces(writing, model, context.clone())));
    }
    Ok(match end(&mut writing).await {
        Ok(written) => reply.json(&report(&context, model, written)),
        Err(problem) => reply.problem(&problem),
    })
}

/// Reads the request and has the model begin. Whether the text is to be sent piece by piece comes with it.
async fn begin(
    request: &HttpRequest,
    model: &str,
    writ: Writ,
    payload: Payload,
    worker: &Worker,
    context: &RequestContext,
    arrived: Instant,
) -> Result<(Writing, bool), Problem> {
    let section = &worker.options.section;
    let deadline = arrived + section.request_timeout();
    let read = body::image_with(request.headers(), payload, section.max_body_bytes);
    let (image, in_body): (Bytes, Writ) =
        timeout_at(deadline.into(), read).await.map_err(|_| body::too_slow(section.request_timeout_ms))??;
    let bad = |detail: String| Problem::new(ProblemKind::BadRequest, detail);
    let prompt = in_body.prompt.or(writ.prompt).unwrap_or_default();
    if prompt.trim().is_empty() {
        return Err(bad("prompt: is missing: what should be written about the image?".to_owned()));
    }
    if prompt.len() > PROMPT_BYTES_MAX {
        return Err(bad(format!("prompt: has more than {PROMPT_BYTES_MAX} bytes")));
    }
    let max_new_tokens = in_body.max_new_tokens.or(writ.max_new_tokens).unwrap_or(NEW_TOKENS);
    if !(1..=NEW_TOKENS_MAX).contains(&max_new_tokens) {
        return Err(bad(format!("max_new_tokens: {max_new_tokens} is out of range: 1 to {NEW_TOKENS_MAX}")));
    }
    let streams = in_body.stream.or(writ.stream).unwrap_or(false);
    let request = GenerateRequest { prompt, max_new_tokens };
    let write = Write { model: model.to_owned(), image, request, deadline, trace: context.trace.clone() };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    Ok((worker.router.send(write).await.map_err(lost)??, streams))
}

/// Waits for the whole text.
async fn end(writing: &mut Writing) -> Result<Written, Problem> {
    while let Some(event) = writing.next().await {
        if let TextEvent::Done(outcome) = event {
            return outcome.map_err(|failure| Problem::of_vote(&failure));
        }
    }
    Err(Problem::new(ProblemKind::Internal, "the text ended without an end"))
}

/// The text as server-sent events.
fn pieces(
    writing: Writing,
    model: String,
    context: RequestContext,
) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
    futures::stream::unfold(Some((writing, model, context)), |state| async {
        let (mut writing, model, context) = state?;
        Some(match writing.next().await {
            Some(TextEvent::Piece(text)) => {
                let data = serde_json::json!({ "text": text }).to_string();
                (Ok(Bytes::from(format!("data: {data}\n\n"))), Some((writing, model, context)))
            }
            Some(TextEvent::Done(Ok(written))) => {
                (Ok(event("done", &report(&context, model, written))), None)
            }
            Some(TextEvent::Done(Err(failure))) => (Ok(event("error", &Problem::of_vote(&failure))), None),
            None => (
                Ok(event("error", &Problem::new(ProblemKind::Internal, "the text ended without an end"))),
                None,
            ),
        })
    })
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    // JSON has no line breaks of its own, so one line of data holds it.
    let data = serde_json::to_string(data).unwrap_or_default();
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}

fn report(context: &RequestContext, model: String, written: Written) -> TextReport {
    let Written { generated, queue, model: in_model } = written;
    TextReport {
        request_id: context.id.to_string(),
        trace_id: context.trace_id.clone(),
        model,
        text: generated.text,
        regions: generated.regions,
        prompt_tokens: generated.prompt_tokens,
        new_tokens: generated.new_tokens,
        finished: generated.finished,
        milliseconds: TextMilliseconds { queue: in_milliseconds(queue), model: in_milliseconds(in_model) },
    }
}
