//! A text on its way to its reader, and its request's entry in the metrics.

use std::sync::Arc;
use std::time::Instant;

use concord_policy::VoteFailure;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use super::admission::{InFlight, Permit};
use super::error::RouteError;
use super::shared::Shared;
use crate::capacity::UnderWay;
use crate::deadline::InterestGuard;
use crate::metrics::Metrics;
use crate::model::{GenerateOutput, TextEvent};

/// The outcome of a text that came whole, in `concord_generate_requests_total`.
const OK: &str = "ok";
/// The outcome of a text whose reader left before its end.
const ABANDONED: &str = "abandoned";
/// The label of every model that does not generate: the name in a request is anybody's choice, and labels are
/// bounded.
const UNKNOWN_MODEL: &str = "unknown";

/// A text on its way. The model writes as long as this is kept; the request's permit is held until the text
/// ends or this is dropped.
#[derive(Debug)]
pub struct GenerateStream {
    pub(super) events: mpsc::Receiver<TextEvent>,
    pub(super) deadline: Instant,
    pub(super) _interest: InterestGuard,
    /// `None` after the end, and for an explanation, which runs inside its own request's permit.
    pub(super) record: Option<GenerateRecord>,
}

impl GenerateStream {
    /// Returns what comes next; `None` after the end. At the deadline the end comes, whatever the model's
    /// thread is doing.
    pub async fn next(&mut self) -> Option<TextEvent> {
        let event = match timeout_at(self.deadline.into(), self.events.recv()).await {
            Ok(event) => event,
            Err(_) if self.events.is_closed() => None,
            Err(_) => {
                self.events.close();
                Some(TextEvent::Done(Err(VoteFailure::expired())))
            }
        };
        if let Some(TextEvent::Done(outcome)) = &event
            && let Some(record) = self.record.take()
        {
            record.finish_text(outcome);
        }
        event
    }
}

/// A request's entry in the metrics, made once: with its outcome, or as abandoned when it is dropped before.
#[derive(Debug)]
pub(super) struct GenerateRecord {
    metrics: Metrics,
    /// The model's name, or `unknown`.
    pub(super) model: Arc<str>,
    arrived: Instant,
    outcome: &'static str,
    pub(super) permit: Option<Permit>,
    pub(super) under_way: Option<UnderWay>,
    _in_flight: InFlight,
}

impl GenerateRecord {
    /// Counts a request as in flight.
    pub(super) fn begin(shared: &Shared) -> Self {
        Self {
            metrics: shared.metrics.clone(),
            model: Arc::from(UNKNOWN_MODEL),
            arrived: Instant::now(),
            outcome: ABANDONED,
            permit: None,
            under_way: None,
            _in_flight: shared.admission.arrive(),
        }
    }

    pub(super) fn refuse(mut self, error: &RouteError) {
        self.outcome = error.outcome();
    }

    fn finish_text(mut self, outcome: &Result<GenerateOutput, VoteFailure>) {
        match outcome {
            Ok(_) => {
                self.outcome = OK;
                if let Some(under_way) = self.under_way.take() {
                    under_way.complete();
                }
                let seconds = self.metrics.generate_request_seconds.with_label_values(&[&*self.model]);
                seconds.observe(self.arrived.elapsed().as_secs_f64());
            }
            Err(failure) => self.outcome = failure.kind().name(),
        }
    }
}

impl Drop for GenerateRecord {
    fn drop(&mut self) {
        self.metrics.generate_requests.with_label_values(&[&*self.model, self.outcome]).inc();
    }
}
