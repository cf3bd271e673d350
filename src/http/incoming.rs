//! A request that is being answered: its trace, its deadline, and its body in time.

use std::time::{Duration, Instant};

use actix_web::HttpRequest;
use actix_web::http::header::HeaderMap;
use tokio::time::{sleep, timeout_at};

use super::body;
use super::body_budget::BodyBudget;
use super::respond::Reply;
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};
use crate::telemetry::RequestContext;

/// The time that bodies which are still arriving are given once the process is shutting down.
const LAST_BODIES: Duration = Duration::from_secs(1);

/// A request that has arrived at a handler. Its deadline is `request_timeout_ms` after that.
pub(super) struct Incoming<'a> {
    request: &'a HttpRequest,
    pub(super) worker: &'a Worker,
    pub(super) context: RequestContext,
    pub(super) deadline: Instant,
}

impl<'a> Incoming<'a> {
    /// Starts the request's span, called `span`, and its time.
    pub(super) fn new(request: &'a HttpRequest, worker: &'a Worker, span: &'static str) -> Self {
        let deadline = Instant::now() + worker.options.section.request_timeout();
        Self { request, worker, context: worker.context(request, span), deadline }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }

    /// Returns the budget of the bytes of bodies.
    pub(super) fn bodies(&self) -> &BodyBudget {
        &self.worker.bodies
    }

    /// Returns the most bytes that the encoded image may have.
    pub(super) fn max_body_bytes(&self) -> u64 {
        self.worker.options.section.max_body_bytes
    }

    /// Awaits the reading of the body: until the deadline at most, and not for long once the process is shutting
    /// down.
    ///
    /// # Errors
    /// Returns the problem of `read`, or that of a slow body if the time is over first.
    pub(super) async fn in_time<T>(
        &self,
        read: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        tokio::select! {
            biased;
            outcome = timeout_at(self.deadline.into(), read) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => Err(body::too_slow(self.worker.options.section.request_timeout_ms)),
            },
            () = self.last_bodies() => {
                let detail = "the server is shutting down, and the body had not arrived";
                Err(Problem::new(ProblemKind::NotReady, detail))
            }
        }
    }

    /// Resolves when bodies have had their time while the process is shutting down.
    async fn last_bodies(&self) {
        self.worker.draining.connections_close().await;
        sleep(LAST_BODIES).await;
    }

    /// Returns what the response to this request is made with.
    pub(super) fn reply(&self) -> Reply<'_> {
        Reply::new(self.request, &self.context, &self.worker.draining)
    }
}
