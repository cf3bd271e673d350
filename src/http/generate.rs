//! `POST /v1/models/{model}/generate`: generates a text about an image, returned whole or streamed.

use actix_web::web::{Bytes, Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use concord_actors::{Generate, GenerateOutput, GenerateStream, TextEvent};
use concord_models::GenerateRequest;
use futures::Stream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use super::auth::Authorized;
use super::body::{self, GenerateParams};
use super::incoming::Incoming;
use super::respond::{ProblemBody, Refusal};
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};
use crate::response::{RegionResponse, in_milliseconds};
use crate::telemetry::RequestContext;

/// The path that it is served at.
pub(super) const PATH: &str = "/v1/models/{model}/generate";
/// The name of the request's span.
const SPAN: &str = "POST /v1/models/{model}/generate";
/// Tokens where the request names no number: a few sentences.
const NEW_TOKENS: usize = 128;
/// A model generates one text at a time, and casts no votes meanwhile.
const NEW_TOKENS_MAX: usize = 1024;
/// Longer than any question about an image.
const PROMPT_BYTES_MAX: usize = 8 * 1024;

/// A text that a model generated.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TextReport {
    /// The identifier of the request in logs and spans: a UUIDv7.
    request_id: String,
    /// The identifier of the request's trace, as Jaeger shows it.
    trace_id: String,
    /// The model's name.
    model: String,
    /// The text, without special tokens.
    text: String,
    /// The regions of the image that the text names, in pixels: each with a `box` (left, top, right, bottom)
    /// or a `quad`.
    #[schema(value_type = Vec<Object>)]
    regions: Vec<RegionResponse>,
    /// The number of tokens in the prompt, those of the image included.
    prompt_tokens: usize,
    /// The number of generated tokens.
    new_tokens: usize,
    /// True if the model ended the text by itself, rather than at `max_new_tokens`.
    finished: bool,
    /// The time that each step took.
    milliseconds: TextMilliseconds,
}

/// The time that a text took, in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
struct TextMilliseconds {
    /// The time in the model's queue.
    queue: f64,
    /// The time in the model.
    model: f64,
}

/// Generates a text about the image in the body.
#[utoipa::path(
    post, path = "/v1/models/{model}/generate", tag = "models",
    params(("model" = String, Path, description = "The name of the model in ensemble.toml"),
        ("prompt" = Option<String>, Query, description = "A question, or a task such as `<CAPTION>`"),
        ("max_new_tokens" = Option<usize>, Query, description = "The most tokens that are generated; 128 where absent"),
        ("stream" = Option<bool>, Query, description = "Whether the text is streamed, as server-sent events")),
    request_body(content(
        (Vec<u8> = "image/*"), (Vec<u8> = "application/octet-stream"), (Vec<u8> = "multipart/form-data"),
        (body::ImageRequest = "application/json"))),
    responses(
        (status = 200, description = "The text; with `stream`, events whose data are {\"text\": …}, and at the end an event \
            `done` with the whole text or `error` with the problem", body = TextReport),
        (status = 400, description = "The body holds no image, or the model does not understand the prompt", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 404, description = "There is no such model, or it generates no texts", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 429, description = "Too many requests; Retry-After says when to try again", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "The server is not ready, or the model failed", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 504, description = "The text did not end within request_timeout_ms", body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn generate(
    request: HttpRequest,
    _authorized: Authorized,
    model: Path<String>,
    query: Query<GenerateParams>,
    payload: Payload,
    worker: Data<Worker>,
) -> Result<HttpResponse, Refusal> {
    let incoming = Incoming::new(&request, &worker, SPAN);
    let model = model.into_inner();
    let (mut stream, is_streamed) = match begin(&incoming, &model, query.into_inner(), payload).await {
        Ok(started) => started,
        Err(problem) => return Ok(incoming.reply().problem(&problem)),
    };
    if is_streamed {
        return Ok(incoming.reply().events(pieces(stream, model, incoming.context.clone())));
    }
    Ok(match end(&mut stream).await {
        Ok(output) => incoming.reply().json(&report(&incoming.context, model, output)),
        Err(problem) => incoming.reply().problem(&problem),
    })
}

/// Reads the request and has the model begin. Returns the text's events, and whether the client wants them
/// streamed.
async fn begin(
    incoming: &Incoming<'_>,
    model: &str,
    query: GenerateParams,
    payload: Payload,
) -> Result<(GenerateStream, bool), Problem> {
    let limit = incoming.max_body_bytes();
    let read = body::image_with_params(incoming.headers(), payload, limit, incoming.bodies());
    let (image, in_body) = incoming.in_time(read).await?;
    let is_streamed = in_body.stream.or(query.stream).unwrap_or(false);
    let request = generate_request(&query, in_body)?;
    let (deadline, trace) = (incoming.deadline, incoming.context.trace.clone());
    // Dropped with this future when the client disconnects; afterwards, the stream takes over.
    let client_left = CancellationToken::new();
    let _cancels_on_drop = client_left.clone().drop_guard();
    let generate = Generate { model: model.to_owned(), image, request, deadline, trace, client_left };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    Ok((incoming.worker.router.send(generate).await.map_err(lost)??, is_streamed))
}

/// Checks the parameters; those in the body take precedence over those in the query.
fn generate_request(query: &GenerateParams, in_body: GenerateParams) -> Result<GenerateRequest, Problem> {
    let bad = |detail: String| Problem::new(ProblemKind::BadRequest, detail);
    let prompt = in_body.prompt.or_else(|| query.prompt.clone()).unwrap_or_default();
    if prompt.trim().is_empty() {
        return Err(bad("prompt: is missing: must be a question or a task about the image".to_owned()));
    }
    if prompt.len() > PROMPT_BYTES_MAX {
        return Err(bad(format!("prompt: is too long: must have at most {PROMPT_BYTES_MAX} bytes")));
    }
    let max_new_tokens = in_body.max_new_tokens.or(query.max_new_tokens).unwrap_or(NEW_TOKENS);
    if !(1..=NEW_TOKENS_MAX).contains(&max_new_tokens) {
        return Err(bad(format!(
            "max_new_tokens: {max_new_tokens} is out of range: must be from 1 to {NEW_TOKENS_MAX}"
        )));
    }
    Ok(GenerateRequest { prompt, max_new_tokens })
}

/// Waits for the end of the text.
async fn end(stream: &mut GenerateStream) -> Result<GenerateOutput, Problem> {
    while let Some(event) = stream.next().await {
        if let TextEvent::Done(outcome) = event {
            return outcome.map_err(|failure| Problem::of_vote(&failure));
        }
    }
    Err(Problem::new(ProblemKind::Internal, "the text was cut off: see the log of the server"))
}

/// Returns the text as server-sent events.
fn pieces(
    stream: GenerateStream,
    model: String,
    context: RequestContext,
) -> impl Stream<Item = Result<Bytes, actix_web::Error>> {
    futures::stream::unfold(Some((stream, model, context)), |state| async {
        let (mut stream, model, context) = state?;
        Some(match stream.next().await {
            Some(TextEvent::Piece(text)) => {
                let data = serde_json::json!({ "text": text }).to_string();
                (Ok(Bytes::from(format!("data: {data}\n\n"))), Some((stream, model, context)))
            }
            Some(TextEvent::Done(Ok(output))) => (Ok(event("done", &report(&context, model, output))), None),
            Some(TextEvent::Done(Err(failure))) => (Ok(event("error", &Problem::of_vote(&failure))), None),
            None => (
                Ok(event(
                    "error",
                    &Problem::new(ProblemKind::Internal, "the text was cut off: see the log of the server"),
                )),
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

fn report(context: &RequestContext, model: String, output: GenerateOutput) -> TextReport {
    let GenerateOutput { generated, queue, model: in_model } = output;
    TextReport {
        request_id: context.id.to_string(),
        trace_id: context.trace_id.clone(),
        model,
        text: generated.text,
        regions: generated.regions.iter().map(RegionResponse::from).collect(),
        prompt_tokens: generated.prompt_tokens,
        new_tokens: generated.new_tokens,
        finished: generated.finished,
        milliseconds: TextMilliseconds { queue: in_milliseconds(queue), model: in_milliseconds(in_model) },
    }
}
