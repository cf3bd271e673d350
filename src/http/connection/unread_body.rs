//! Bodies that nobody reads to their end. actix waits without a limit for the rest of a chunked body whose
//! reader is gone, and for one second, closing the connection, where the reader is still there when the
//! response is sent. So every reader is kept until then.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage};
use futures::Stream;

use super::activity::{Activity, Phase};

/// Answers the request by `next`, and closes the connection with the response if the body has not been read to
/// its end by then.
///
/// # Errors
/// Returns the errors of `next`.
pub(in crate::http) async fn close_if_body_is_unread(
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<ReadingBody>, Error> {
    let guard = PhaseGuard(request.conn_data::<Rc<Activity>>().cloned());
    let reader = Reader::of(request.take_payload(), &guard);
    if let Some(reader) = &reader {
        request.set_payload(Payload::Stream { payload: Box::pin(reader.clone()) });
    }
    guard.enter(if reader.is_some() { Phase::Body } else { Phase::Answer });
    let response = next.call(request).await?;
    guard.enter(Phase::Answer);
    Ok(response.map_body(|_, body| ReadingBody { body, _reader: reader, _guard: guard }))
}

/// The reader of a request's body, which its clones share.
#[derive(Clone)]
struct Reader {
    payload: Rc<RefCell<Payload>>,
    has_ended: Rc<Cell<bool>>,
    activity: Option<Rc<Activity>>,
}

impl Reader {
    /// Returns the reader of `payload`, or `None` where there is no body.
    fn of(payload: Payload, guard: &PhaseGuard) -> Option<Self> {
        if matches!(payload, Payload::None) {
            return None;
        }
        let payload = Rc::new(RefCell::new(payload));
        Some(Self { payload, has_ended: Rc::default(), activity: guard.0.clone() })
    }
}

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended.get() {
            return Poll::Ready(None);
        }
        let next = Pin::new(&mut *self.payload.borrow_mut()).poll_next(context);
        if matches!(next, Poll::Ready(None)) {
            self.has_ended.set(true);
            if let Some(activity) = &self.activity {
                activity.enter(Phase::Answer);
            }
        }
        next
    }
}

/// A response's body, which keeps the reader of the request's until it has been sent.
pub(in crate::http) struct ReadingBody {
    body: BoxBody,
    _reader: Option<Reader>,
    _guard: PhaseGuard,
}

impl MessageBody for ReadingBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

/// The phases of a request on its connection, which is idle again when this is dropped.
struct PhaseGuard(Option<Rc<Activity>>);

impl PhaseGuard {
    fn enter(&self, phase: Phase) {
        if let Some(activity) = &self.0 {
            activity.enter(phase);
        }
    }
}

impl Drop for PhaseGuard {
    fn drop(&mut self) {
        self.enter(Phase::Idle);
    }
}
