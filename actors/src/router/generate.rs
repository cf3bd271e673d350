//! The way of a generate request: one model writes about an image, without cascade and cache.

use std::sync::Arc;
use std::time::Instant;

use actix::{Handler, ResponseFuture};
use concord_models::{GenerateRequest, ImageLimits, Scale, declared_size, decode_at, jpeg_size};
use tracing::field::Empty;

use super::actor::Router;
use super::admission::while_wanted;
use super::error::RouteError;
use super::generate_stream::{GenerateRecord, GenerateStream};
use super::messages::Generate;
use super::shared::Shared;
use crate::Trace;
use crate::deadline::{InterestGuard, SharedDeadline};
use crate::metrics::{Metrics, Phase};
use crate::model::{ModelHandle, QueuePermit, TextRequest, TokenSink};
use crate::pool::Lane;
use crate::trace::TRACE_TARGET;

impl Handler<Generate> for Router {
    type Result = ResponseFuture<Result<GenerateStream, RouteError>>;

    fn handle(&mut self, request: Generate, _: &mut Self::Context) -> Self::Result {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let mut record = GenerateRecord::begin(&shared);
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
    record: &mut GenerateRecord,
) -> Result<GenerateStream, RouteError> {
    let model = generator(shared, &request.model)?;
    record.model = Arc::clone(model.name());
    record.permit = Some(shared.admission.admit()?);
    let (shared_deadline, interest) = SharedDeadline::new(request.deadline);
    record.under_way = Some(model.text_capacity.admit(Instant::now(), &shared_deadline)?);
    let (deadline, client_left) = (request.deadline, request.client_left.clone());
    let start = start(shared, &model, request, (shared_deadline, interest));
    while_wanted(deadline, &client_left, start).await?
}

/// Returns the model of that name.
///
/// # Errors
/// When the process is not ready, or no model of that name generates text.
fn generator(shared: &Shared, name: &str) -> Result<ModelHandle, RouteError> {
    shared.check_ready()?;
    let running = shared.running.get().ok_or(RouteError::NotReady)?;
    running.models.get(name).filter(|model| model.generates).cloned().ok_or_else(|| {
        let generators = running.models.values().filter(|model| model.generates);
        let models = generators.map(|model| model.name().to_string()).collect();
        RouteError::UnknownModel { model: name.to_owned(), models }
    })
}

/// Decodes the image and queues the text, which is wanted as long as the interest in it is kept. The request has
/// been admitted.
pub(super) async fn start(
    shared: &Shared,
    model: &ModelHandle,
    request: Generate,
    (shared_deadline, interest): (Arc<SharedDeadline>, InterestGuard),
) -> Result<GenerateStream, RouteError> {
    let Generate { image, request, deadline, trace, .. } = request;
    let size = declared_size(&image).filter(|size| shared.admits_size(*size));
    // Before the place in the queue, which would make others wait. Kept until the image has been made ready.
    let pixels = match size {
        Some(size) => shared.pixels.take(size).await,
        None => None,
    };
    let permit = model.reserve(false).map_err(|failure| RouteError::busy(failure.to_string()))?;
    let trace = span(&trace, model, &permit, &request);
    let (sink, events) = TokenSink::new(request.max_new_tokens);
    let text = TextRequest { request, permit, deadline: shared_deadline, trace, sink };
    let (model, metrics, limits) = (model.clone(), shared.metrics.clone(), shared.image_limits);
    let ready = shared.pool.run(Lane::of(size), move || {
        let _pixels = pixels;
        submit(&model, &metrics, &image, limits, text)
    });
    ready.await.unwrap_or(Err(RouteError::Lost("the image could not be made ready")))?;
    Ok(GenerateStream { events, deadline, _interest: interest, record: None })
}

/// Decodes the image at the scale that the model wants and queues the text, unless nobody waits for it any
/// more; the caller is a thread of the CPU pool.
fn submit(
    model: &ModelHandle,
    metrics: &Metrics,
    bytes: &[u8],
    limits: ImageLimits,
    text: TextRequest,
) -> Result<(), RouteError> {
    if let Some(reason) = text.deadline.cancel_reason() {
        metrics.dropped.with_label_values(&[&**model.name(), reason.name()]).inc();
        return Err(RouteError::Expired);
    }
    let started = Instant::now();
    let size = if model.options.decodes_fast() { jpeg_size(bytes, limits)? } else { None };
    let scale = size.map_or(Scale::WHOLE, |size| model.scale(size));
    let decoded = decode_at(bytes, limits, scale, &|| text.deadline.cancel_reason().is_none())?;
    metrics.observe(Phase::Decode, started.elapsed());
    model.generate(&decoded, text);
    Ok(())
}

fn span(trace: &Trace, model: &ModelHandle, permit: &QueuePermit, request: &GenerateRequest) -> Trace {
    let (name, replica) = (model.name(), &permit.replica);
    trace.child(|parent| {
        tracing::info_span!(target: TRACE_TARGET, parent: parent, "generate",
            concord.service = format_args!("concord-model-{name}"), model = &**name,
            replica = replica.index, device = replica.device.as_str(), max_new_tokens = request.max_new_tokens, tokens = Empty)
    })
}
