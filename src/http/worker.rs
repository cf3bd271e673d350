//! The state that the handlers of one HTTP worker share: its router, the options, and whether the process is
//! draining.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use actix::Addr;
use actix_web::HttpRequest;
use concord_actors::{Engine, Router};
use tokio_util::sync::CancellationToken;

use super::body_budget::BodyBudget;
use super::keys::ApiKeys;
use crate::config::ServerSection;
use crate::telemetry::{RequestContext, Sampling, TRACEPARENT};

/// The options of the endpoint.
#[derive(Debug, Clone)]
pub struct EndpointOptions {
    /// The section `[server]`.
    pub section: ServerSection,
    /// The accepted API keys; `None` admits everyone.
    pub keys: Option<Arc<ApiKeys>>,
    /// The choice of requests whose trace is exported.
    pub sampling: Sampling,
}

/// The state of one HTTP worker: a router of its own, and what all workers share.
#[derive(Clone)]
pub(super) struct Worker {
    pub(super) engine: Arc<Engine>,
    pub(super) router: Addr<Router>,
    pub(super) options: Arc<EndpointOptions>,
    /// The budget of all workers.
    pub(super) bodies: BodyBudget,
    pub(super) draining: Draining,
}

impl Worker {
    /// Returns the context of a request that has arrived, under a span called `span`.
    pub(super) fn context(&self, request: &HttpRequest, span: &'static str) -> RequestContext {
        let traceparent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
        self.options.sampling.request(span, traceparent)
    }
}

/// The progress of a process that is shutting down.
#[derive(Debug, Clone, Default)]
pub struct Draining(Arc<DrainingSteps>);

#[derive(Debug, Default)]
struct DrainingSteps {
    begun: AtomicBool,
    closing: CancellationToken,
}

impl Draining {
    /// Makes `/readyz` answer that the process is not ready any more.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
    }

    /// Makes every response close its connection.
    pub fn close_connections(&self) {
        self.0.closing.cancel();
    }

    pub(super) fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    pub(super) fn closes_connections(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// Resolves once every response closes its connection.
    pub(super) async fn connections_close(&self) {
        self.0.closing.cancelled().await;
    }
}
