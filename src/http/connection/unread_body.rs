//! Bodies that nobody reads to their end. actix waits without a limit for the rest of a chunked body whose
//! reader is gone, and for one second, closing the connection, where the reader is still there when the
//! response is sent. So the body is kept until then.

use std::cell::RefCell;
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
    let payload = match request.take_payload() {
        Payload::None => None,
        payload => Some(Rc::new(RefCell::new(payload))),
    };
    guard.enter(if payload.is_some() { Phase::Body } else { Phase::Answer });
    if let Some(payload) = &payload {
        let reader = Reader { payload: Rc::clone(payload), has_ended: false, activity: guard.0.clone() };
        request.set_payload(Payload::Stream { payload: Box::pin(reader) });
    }
    let response = next.call(request).await?;
    guard.enter(Phase::Answer);
    Ok(response.map_body(|_, body| ReadingBody { body, _payload: payload, _guard: guard }))
}

/// The handler's reader of a request's body. The body is wanted until its end, or until this is dropped.
struct Reader {
    payload: Rc<RefCell<Payload>>,
    has_ended: bool,
    activity: Option<Rc<Activity>>,
}

impl Stream for Reader {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        let next = Pin::new(&mut *self.payload.borrow_mut()).poll_next(context);
        if matches!(next, Poll::Ready(None)) {
            self.end();
        }
        next
    }
}

impl Reader {
    fn end(&mut self) {
        if !std::mem::replace(&mut self.has_ended, true)
            && let Some(activity) = &self.activity
        {
            activity.enter(Phase::Answer);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end();
    }
}

/// A response's body, which keeps the request's until it has been sent.
pub(in crate::http) struct ReadingBody {
    body: BoxBody,
    _payload: Option<Rc<RefCell<Payload>>>,
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
