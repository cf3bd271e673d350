//! A text that one model writes about an image: no cascade, no cache.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Handler, Message, ResponseFuture};
use bytes::Bytes;
use concord_models::{DecodeError, GenerateRequest, Picture, Scale, decode_at, jpeg_size};
use tokio::sync::mpsc;
use tokio::time::timeout_at;
use tracing::field::Empty;

use super::error::RouteError;
use super::{Router, Shared};
use crate::Trace;
use crate::model::{AskedText, ModelHandle, Place, TextEvent, Writer};
use crate::ticket::{Ticket, Waiter};
use crate::trace::TRACE_TARGET;
use concord_policy::VoteFailure;

/// An image that a model is to write about.
#[derive(Debug, Message)]
#[rtype(result = "Result<Writing, RouteError>")]
pub struct Write {
    /// The model's name.
    pub model: String,
    /// The encoded image.
    pub image: Bytes,
    /// What to write.
    pub request: GenerateRequest,
    /// When a text is of no use any more: what has been written until then has been sent.
    pub deadline: Instant,
    /// The request's span.
    pub trace: Trace,
}

/// A text on its way; it is written as long as this is kept.
#[derive(Debug)]
pub struct Writing {
    events: mpsc::Receiver<TextEvent>,
    deadline: Instant,
    _waiter: Waiter,
}

impl Writing {
    /// What comes next; `None` after the end. At the deadline the end comes, whatever the model's thread is doing.
    pub async fn next(&mut self) -> Option<TextEvent> {
        match timeout_at(self.deadline.into(), self.events.recv()).await {
            Ok(event) => event,
            Err(_) if self.events.is_closed() => None,
            Err(_) => {
                self.events.close();
                Some(TextEvent::Done(Err(VoteFailure::expired())))
            }
        }
    }
}

impl Handler<Write> for Router {
    type Result = ResponseFuture<Result<Writing, RouteError>>;

    fn handle(&mut self, write: Write, _: &mut Self::Context) -> Self::Result {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { start(&shared, write).await })
    }
}

pub(super) async fn start(shared: &Shared, write: Write) -> Result<Writing, RouteError> {
    let running = shared.running.get().ok_or(RouteError::NotReady)?;
    let Some(model) = running.models.get(write.model.as_str()).filter(|model| model.writes).cloned() else {
        let writers = running.models.values().filter(|model| model.writes);
        let models = writers.map(|model| model.name().to_string()).collect();
        return Err(RouteError::UnknownModel { model: write.model, models });
    };
    let place = model.reserve().map_err(|failure| RouteError::Busy(failure.to_string()))?;
    let trace = span(&write.trace, &model, &place, &write.request);
    let deadline = write.deadline;
    let (ticket, waiter) = Ticket::new(deadline);
    let (writer, events) = Writer::new(write.request.max_new_tokens);
    let text = AskedText { request: write.request, place, ticket, trace, writer };
    let (bytes, max_pixels) = (write.image, shared.max_pixels);
    let metrics = shared.metrics.clone();
    let ready = shared.pool.run(move || {
        let started = Instant::now();
        let picture = decode_for(&model, &bytes, max_pixels)?;
        let elapsed: Duration = started.elapsed();
        metrics.phase_seconds.with_label_values(&["decode"]).observe(elapsed.as_secs_f64());
        model.write(&picture, text);
        Ok(())
    });
    ready.await.unwrap_or(Err(RouteError::Lost("the image could not be made ready")))?;
    Ok(Writing { events, deadline, _waiter: waiter })
}

/// At the scale that the model wants.
fn decode_for(model: &ModelHandle, bytes: &[u8], max_pixels: u64) -> Result<Picture, DecodeError> {
    let size = if model.options.decodes_fast() { jpeg_size(bytes, max_pixels)? } else { None };
    decode_at(bytes, max_pixels, size.map_or(Scale::WHOLE, |size| model.scale(size)))
}

fn span(trace: &Trace, model: &ModelHandle, place: &Place, request: &GenerateRequest) -> Trace {
    let (name, replica) = (model.name(), &place.replica);
    trace.child(|parent| {
        tracing::info_span!(target: TRACE_TARGET, parent: parent, "generate",
            concord.service = format_args!("concord-model-{name}"), model = &**name,
            replica = replica.index, device = replica.device.as_str(), max_new_tokens = request.max_new_tokens, tokens = Empty)
    })
}
