//! Responses: a verdict, or a problem in the form of RFC 9457, each with the request's id and trace.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, CACHE_CONTROL, CONNECTION, WWW_AUTHENTICATE};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError, web};
use concord_actors::LogLimit;
use futures::Stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::worker::{Draining, Worker};
use crate::problem::{Problem, ProblemKind};
use crate::response::ClassifyResponse;
use crate::telemetry::{RequestContext, Sampling, TRACEPARENT};

const REQUEST_ID: &str = "x-request-id";
const PROBLEM_JSON: &str = "application/problem+json";
/// The time after which a client may try again where nothing better is known.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// By the kinds of problems.
static REFUSED: LogLimit = LogLimit::new();

/// The body of a response without a verdict: RFC 9457, "Problem Details for HTTP APIs".
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody<'a> {
    /// The kind of failure; stable, for programs.
    #[serde(rename = "type")]
    kind: ProblemKind,
    /// The kind in words, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The failure of this request, and what to do about it.
    detail: &'a str,
    /// The identifier of the request in logs and spans: a UUIDv7.
    request_id: String,
    /// The identifier of the request's trace, as Jaeger shows it.
    trace_id: &'a str,
}

/// The response to one request, which it makes, records in the trace, and logs.
pub(super) struct Reply<'a> {
    context: &'a RequestContext,
    /// The requested path, for the log.
    path: &'a str,
    close: bool,
}

impl<'a> Reply<'a> {
    pub(super) fn new(request: &'a HttpRequest, context: &'a RequestContext, draining: &Draining) -> Self {
        Self { context, path: request.path(), close: draining.closes_connections() }
    }

    pub(super) fn verdict(&self, verdict: &ClassifyResponse) -> HttpResponse {
        self.record(StatusCode::OK);
        tracing::debug!(parent: self.context.trace.span(), path = self.path, status = 200, label = verdict.label,
            cache = verdict.cache, ms = verdict.milliseconds.total, "answered");
        self.builder(StatusCode::OK).json(verdict)
    }

    pub(super) fn json(&self, page: &impl Serialize) -> HttpResponse {
        self.record(StatusCode::OK);
        self.builder(StatusCode::OK).json(page)
    }

    /// Streams server-sent events.
    pub(super) fn events(
        &self,
        events: impl Stream<Item = Result<web::Bytes, actix_web::Error>> + 'static,
    ) -> HttpResponse {
        self.record(StatusCode::OK);
        let mut builder = self.builder(StatusCode::OK);
        builder.content_type("text/event-stream").insert_header((CACHE_CONTROL, "no-cache"));
        builder.streaming(events)
    }

    pub(super) fn problem(&self, problem: &Problem) -> HttpResponse {
        let kind = problem.kind;
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.record(status);
        self.log(problem, status);
        let mut builder = self.builder(status);
        if matches!(kind, ProblemKind::Busy | ProblemKind::NotReady) {
            builder.insert_header((header::RETRY_AFTER, retry_after_s(problem)));
        }
        let header = match kind {
            ProblemKind::Unauthorized => Some((WWW_AUTHENTICATE, "Bearer")),
            // The rest of the body is not worth reading.
            ProblemKind::TooLarge | ProblemKind::SlowBody => Some((CONNECTION, "close")),
            _ => None,
        };
        if let Some(header) = header {
            builder.insert_header(header);
        }
        let body = ProblemBody {
            kind,
            title: kind.title(),
            status: kind.status(),
            detail: &problem.detail,
            request_id: self.context.id.to_string(),
            trace_id: &self.context.trace_id,
        };
        builder.content_type(PROBLEM_JSON).body(serde_json::to_string(&body).unwrap_or_default())
    }

    fn builder(&self, status: StatusCode) -> HttpResponseBuilder {
        let mut builder = HttpResponse::build(status);
        builder.insert_header((REQUEST_ID, self.context.id.to_string()));
        builder.insert_header((TRACEPARENT, self.context.traceparent.as_str()));
        if self.close {
            builder.force_close();
        }
        builder
    }

    fn record(&self, status: StatusCode) {
        let trace = &self.context.trace;
        trace.record("http.response.status_code", status.as_u16());
        if status.is_server_error() {
            trace.record("otel.status_code", "ERROR");
        }
    }

    fn log(&self, problem: &Problem, status: StatusCode) {
        let (span, path, status) = (self.context.trace.span(), self.path, status.as_u16());
        let detail = problem.detail.as_str();
        match problem.kind {
            ProblemKind::ModelFailed | ProblemKind::TimedOut | ProblemKind::Internal => {
                REFUSED.log(problem.kind.title(), || {
                    tracing::warn!(parent: span, path, status, detail, "refused");
                });
            }
            _ => tracing::debug!(parent: span, path, status, detail, "refused"),
        }
    }
}

/// Returns the whole seconds after which a client should try again, 1 at least.
fn retry_after_s(problem: &Problem) -> u64 {
    let wait = problem.retry_after.unwrap_or(RETRY_AFTER);
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

/// A request that is refused before it has a context. It gets an id of its own.
#[derive(Debug)]
pub(super) struct Refusal {
    problem: Problem,
    request: HttpRequest,
}

impl Refusal {
    pub(super) fn of(request: &HttpRequest, problem: Problem) -> Self {
        Self { problem, request: request.clone() }
    }

    pub(super) fn respond(&self) -> HttpResponse {
        let context = Sampling::none().request("refused", None);
        let draining = self.request.app_data::<web::Data<Worker>>().map(|worker| worker.draining.clone());
        Reply::new(&self.request, &context, &draining.unwrap_or_default()).problem(&self.problem)
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.problem.detail)
    }
}

impl ResponseError for Refusal {
    fn error_response(&self) -> HttpResponse {
        self.respond()
    }
}
