//! `POST /v1/tasks/{task}/classify`: bytes and headers → a request with a deadline and a trace → its verdict.

use std::time::Instant;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::web::{Bytes, Data, Path, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use concord_actors::{Caller, Classify};
use serde::Deserialize;
use tokio::time::timeout_at;

use super::auth::Authorized;
use super::respond::{ProblemBody, Refusal, Reply};
use super::{Worker, body};
use crate::problem::{Problem, ProblemKind};
use crate::telemetry::RequestContext;
use crate::verdict::Verdict;

/// Where it is served.
pub(super) const PATH: &str = "/v1/tasks/{task}/classify";
/// What its span is called.
const SPAN: &str = "POST /v1/tasks/{task}/classify";

/// What is wanted besides the verdict.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wishes {
    explain: bool,
}

/// Answers the task for the image in the body.
#[utoipa::path(
    post, path = "/v1/tasks/{task}/classify", tag = "tasks",
    params(("task" = String, Path, description = "The task's name in ensemble.toml"),
        ("cache-control" = Option<String>, Header, description = "`no-cache` answers without looking into the cache"),
        ("explain" = Option<bool>, Query, description = "Whether a model is to say in words why"),
        ("traceparent" = Option<String>, Header, description = "W3C Trace Context: the trace to go on with")),
    request_body(content(
        (Vec<u8> = "image/*"), (Vec<u8> = "application/octet-stream"), (Vec<u8> = "multipart/form-data"),
        (body::ImageRequest = "application/json"))),
    responses(
        (status = 200, description = "The verdict", body = Verdict),
        (status = 400, description = "Not an image, a broken one, or a body that cannot be read", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 401, description = "No API key, or a wrong one", body = ProblemBody, content_type = "application/problem+json"),
        (status = 404, description = "No such task", body = ProblemBody, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive in time", body = ProblemBody, content_type = "application/problem+json"),
        (status = 413, description = "Too many bytes or pixels", body = ProblemBody, content_type = "application/problem+json"),
        (status = 415, description = "A body of another type", body = ProblemBody, content_type = "application/problem+json"),
        (status = 429, description = "Busy; Retry-After says when to ask again", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 503, description = "Not ready, or a required model failed", body = ProblemBody,
            content_type = "application/problem+json"),
        (status = 504, description = "No answer in time", body = ProblemBody, content_type = "application/problem+json")))]
pub(super) async fn classify(
    request: HttpRequest,
    _authorized: Authorized,
    task: Path<String>,
    wishes: Query<Wishes>,
    payload: Payload,
    worker: Data<Worker>,
) -> Result<HttpResponse, Refusal> {
    let arrived = Instant::now();
    let context = worker.context(&request, SPAN);
    let reply = Reply::new(&request, &context, &worker.draining);
    let question = (task.into_inner(), wishes.explain);
    match verdict(&request, question, payload, &worker, &context, arrived).await {
        Ok(verdict) => Ok(reply.verdict(&verdict)),
        Err(problem) => Ok(reply.problem(&problem)),
    }
}

async fn verdict(
    request: &HttpRequest,
    (task, explain): (String, bool),
    payload: Payload,
    worker: &Worker,
    context: &RequestContext,
    arrived: Instant,
) -> Result<Verdict, Problem> {
    let section = &worker.options.section;
    let deadline = arrived + section.request_timeout();
    let image = body::image(request.headers(), payload, section.max_body_bytes);
    let late = |_| body::too_slow(section.request_timeout_ms);
    let image: Bytes = timeout_at(deadline.into(), image).await.map_err(late)??;
    // Dropped with this future when the client goes.
    let (caller, _presence) = Caller::new();
    let fresh = request.headers().get(CACHE_CONTROL).is_some_and(|value| value == "no-cache");
    let question = Classify { task, image, deadline, fresh, explain, trace: context.trace.clone(), caller };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    let routed = worker.router.send(question).await.map_err(lost)??;
    Ok(Verdict::new(context, &routed))
}
