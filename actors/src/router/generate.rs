//! A text that one model writes about an image: no cascade, no cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Handler, Message, ResponseFuture};
use bytes::Bytes;
use concord_models::{DecodedImage, GenerateRequest, Scale, decode_at, jpeg_size};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;

use super::admission::{InFlight, Permit, while_wanted};
use super::error::RouteError;
use super::{Router, Shared};
use crate::Trace;
use crate::metrics::Metrics;
use crate::model::{GenerateOutput, ModelHandle, Place, TextEvent, TextRequest, TokenSink};
use crate::ticket::{Ticket, Waiter};
use crate::trace::TRACE_TARGET;
use concord_policy::VoteFailure;

/// The outcome of a text that came whole, in `concord_generate_requests_total`.
const OK: &str = "ok";
/// The outcome of a text whose reader left before its end.
const ABANDONED: &str = "abandoned";
/// The label of every model that does not generate: the name in a request is anybody's choice, and labels are bounded.
const UNKNOWN_MODEL: &str = "unknown";

/// Asks a model to write about an image.
#[derive(Debug, Message)]
#[rtype(result = "Result<GenerateStream, RouteError>")]
pub struct Generate {
    /// The model's name.
    pub model: String,
    /// The encoded image.
    pub image: Bytes,
    /// What to write.
    pub request: GenerateRequest,
    /// When the text ends at the latest; what has been written until then has been sent.
    pub deadline: Instant,
    /// The request's span.
    pub trace: Trace,
    /// Cancelled when the client leaves before the stream is there; later it drops the stream.
    pub client_left: CancellationToken,
}

/// A text on its way. The model writes as long as this is kept; the request's permit is held until the text ends or
/// this is dropped.
#[derive(Debug)]
pub struct GenerateStream {
    events: mpsc::Receiver<TextEvent>,
    deadline: Instant,
    _waiter: Waiter,
    /// `None` after the end, and for an explanation, which runs inside its own request's permit.
    record: Option<Record>,
}

impl GenerateStream {
    /// Returns what comes next; `None` after the end. At the deadline the end comes, whatever the model's thread is
    /// doing.
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
struct Record {
    metrics: Metrics,
    /// The model's name, or `unknown`.
    model: Arc<str>,
    arrived: Instant,
    outcome: &'static str,
    permit: Option<Permit>,
    _in_flight: InFlight,
}

impl Record {
    fn begin(shared: &Shared) -> Self {
        Self {
            metrics: shared.metrics.clone(),
            model: Arc::from(UNKNOWN_MODEL),
            arrived: Instant::now(),
            outcome: ABANDONED,
            permit: None,
            _in_flight: shared.admission.arrive(),
        }
    }

    fn refuse(mut self, error: &RouteError) {
        self.outcome = error.outcome();
    }

    fn finish_text(mut self, outcome: &Result<GenerateOutput, VoteFailure>) {
        match outcome {
            Ok(_) => {
                self.outcome = OK;
                let seconds = self.metrics.generate_request_seconds.with_label_values(&[&*self.model]);
                seconds.observe(self.arrived.elapsed().as_secs_f64());
            }
            Err(failure) => self.outcome = failure.kind().name(),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.generate_requests.with_label_values(&[&*self.model, self.outcome]).inc();
    }
}

impl Handler<Generate> for Router {
    type Result = ResponseFuture<Result<GenerateStream, RouteError>>;

    fn handle(&mut self, request: Generate, _: &mut Self::Context) -> Self::Result {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mut record = Record::begin(&shared);
            match admitted(&shared, request, &mut record).await {
                Ok(stream) => Ok(GenerateStream { record: Some(record), ..stream }),
                Err(error) => {
                    record.refuse(&error);
                    Err(error)
                }
            }
        })
    }
}

/// Starts a text within the request's permit and time.
async fn admitted(
    shared: &Shared,
    request: Generate,
    record: &mut Record,
) -> Result<GenerateStream, RouteError> {
    let model = generator(shared, &request.model)?;
    record.model = Arc::clone(model.name());
    record.permit = Some(shared.admission.admit()?);
    let (deadline, client_left) = (request.deadline, request.client_left.clone());
    while_wanted(deadline, &client_left, start(shared, &model, request)).await?
}

/// Returns the model of that name.
///
/// # Errors
/// When the process is not ready, or no model of that name generates text.
fn generator(shared: &Shared, name: &str) -> Result<ModelHandle, RouteError> {
    shared.check_ready()?;
    let running = shared.running.get().ok_or(RouteError::NotReady)?;
    running.models.get(name).filter(|model| model.writes).cloned().ok_or_else(|| {
        let generators = running.models.values().filter(|model| model.writes);
        let models = generators.map(|model| model.name().to_string()).collect();
        RouteError::UnknownModel { model: name.to_owned(), models }
    })
}

/// Decodes the image and queues the text. The request has been admitted.
pub(super) async fn start(
    shared: &Shared,
    model: &ModelHandle,
    request: Generate,
) -> Result<GenerateStream, RouteError> {
    let Generate { image, request, deadline, trace, .. } = request;
    let place = model.reserve().map_err(|failure| RouteError::Busy(failure.to_string()))?;
    let trace = span(&trace, model, &place, &request);
    let (ticket, waiter) = Ticket::new(deadline);
    let (sink, events) = TokenSink::new(request.max_new_tokens);
    let text = TextRequest { request, place, ticket, trace, sink };
    let (model, metrics, max_pixels) = (model.clone(), shared.metrics.clone(), shared.max_pixels);
    let ready = shared.pool.run(move || submit(&model, &metrics, &image, max_pixels, text));
    ready.await.unwrap_or(Err(RouteError::Lost("the image could not be made ready")))?;
    Ok(GenerateStream { events, deadline, _waiter: waiter, record: None })
}

/// Decodes the image at the scale that the model wants and queues the text, unless nobody waits for it any more; the
/// caller is a thread of the CPU pool.
fn submit(
    model: &ModelHandle,
    metrics: &Metrics,
    bytes: &[u8],
    max_pixels: u64,
    text: TextRequest,
) -> Result<(), RouteError> {
    if let Some(why) = text.ticket.unwanted() {
        metrics.dropped.with_label_values(&[&**model.name(), why.name()]).inc();
        return Err(RouteError::Expired);
    }
    let started = Instant::now();
    let size = if model.options.decodes_fast() { jpeg_size(bytes, max_pixels)? } else { None };
    let picture: DecodedImage =
        decode_at(bytes, max_pixels, size.map_or(Scale::WHOLE, |size| model.scale(size)))?;
    let elapsed: Duration = started.elapsed();
    metrics.phase_seconds.with_label_values(&["decode"]).observe(elapsed.as_secs_f64());
    model.write(&picture, text);
    Ok(())
}

fn span(trace: &Trace, model: &ModelHandle, place: &Place, request: &GenerateRequest) -> Trace {
    let (name, replica) = (model.name(), &place.replica);
    trace.child(|parent| {
        tracing::info_span!(target: TRACE_TARGET, parent: parent, "generate",
            concord.service = format_args!("concord-model-{name}"), model = &**name,
            replica = replica.index, device = replica.device.as_str(), max_new_tokens = request.max_new_tokens, tokens = Empty)
    })
}
