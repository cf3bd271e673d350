//! `POST /v1/tasks/{task}/classify`: turns bytes and headers into a question to the router, and its answer
//! into a verdict.

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use concord_actors::Classify;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::auth::Authorized;
use super::body;
use super::incoming::Incoming;
use super::respond::{ProblemBody, Refusal};
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};
use crate::response::ClassifyResponse;

/// The path that it is served at.
pub(super) const PATH: &str = "/v1/tasks/{task}/classify";
/// The name of the request's span.
const SPAN: &str = "POST /v1/tasks/{task}/classify";

/// The largest body that is read, unless overload is heavy, although a new image could not be answered: it may be
/// in the cache, and reading it costs no more than closing the connection.
const CHEAP_BYTES: u64 = 64 << 10;

/// The query parameters of a classification.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClassifyQuery {
    explain: bool,
}

/// Classifies the image in the body.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/classify", tag = "tasks",
    params(("task" = String, Path, description = "The name of the task in ensemble.toml"),
        ("cache-control" = Option<String>, Header, description = "`no-cache` bypasses the cache"),
        ("explain" = Option<bool>, Query, description = "Whether a model explains the verdict in words"),
        ("traceparent" = Option<String>, Header, description = "W3C Trace Context: the trace to continue")),
    request_body(content(
        (Vec<u8> = "image/*"), (Vec<u8> = "application/octet-stream"), (Vec<u8> = "multipart/form-data"),
        (body::ImageRequest = "application/json"))),
    responses(
        (status = 200, description = "The verdict", body = ClassifyResponse),
        (status = 400, description = "The body cannot be read, or holds no image or a broken one", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 401, description = "The API key is missing or wrong", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "There is no such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "The image has too many bytes or pixels", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "The content type is not supported", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Too many requests; Retry-After says when to try again", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 503, description = "The server is not ready, or a required model failed", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 504, description = "There was no verdict within request_timeout_ms", body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn classify(
    request: HttpRequest,
    _authorized: Authorized,
    task: Path<String>,
    query: Query<ClassifyQuery>,
    payload: Payload,
    worker: Data<Worker>,
) -> Result<HttpResponse, Refusal> {
    let incoming = Incoming::new(&request, &worker, SPAN);
    Ok(match verdict(&incoming, task.into_inner(), query.explain, payload).await {
        Ok(verdict) => incoming.reply().verdict(&verdict),
        Err(problem) => incoming.reply().problem(&problem),
    })
}

async fn verdict(
    incoming: &Incoming<'_>,
    task: String,
    explain: bool,
    payload: Payload,
) -> Result<ClassifyResponse, Problem> {
    let (engine, time) = (&incoming.worker.engine, incoming.worker.options.section.request_timeout());
    let is_costly = body::declared_length(incoming.headers()).is_none_or(|length| length > CHEAP_BYTES);
    if let Err(refusal) = engine.refuse_early(&task, time, is_costly) {
        if !is_costly {
            incoming.in_time(body::discard(payload)).await?;
        }
        return Err(refusal.into());
    }
    let image = body::image(incoming.headers(), payload, incoming.max_body_bytes(), incoming.bodies());
    let image = incoming.in_time(image).await?;
    // Dropped with this future when the client disconnects.
    let client_left = CancellationToken::new();
    let _cancels_on_drop = client_left.clone().drop_guard();
    let fresh = incoming.headers().get(CACHE_CONTROL).is_some_and(|value| value == "no-cache");
    let (deadline, trace) = (incoming.deadline, incoming.context.trace.clone());
    let question = Classify { task, image, deadline, fresh, explain, trace, client_left };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    let routed = incoming.worker.router.send(question).await.map_err(lost)??;
    Ok(ClassifyResponse::new(&incoming.context, &routed))
}
