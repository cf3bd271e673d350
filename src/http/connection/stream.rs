//! A connection's stream with limits, below TLS: it reads no further ahead than its activity allows, and ends
//! with an error when its client has been silent or deaf for too long.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix_web::rt::net::{ActixStream, Ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::activity::{Activity, Read};
use crate::http::worker::Draining;

/// A stream that is limited by its [`Activity`].
pub(super) struct LimitedStream<S> {
    stream: S,
    activity: Rc<Activity>,
    draining: Draining,
    /// The alarm at the time when the connection is to be closed; made when there first is such a time.
    alarm: Option<Pin<Box<Sleep>>>,
    /// True while a read has been put off until responses are written.
    read_is_held: bool,
}

impl<S> LimitedStream<S> {
    pub(super) fn new(stream: S, draining: Draining) -> Self {
        Self { stream, activity: Rc::default(), draining, alarm: None, read_is_held: false }
    }

    pub(super) fn activity(&self) -> &Rc<Activity> {
        &self.activity
    }

    /// Returns an error once the client has had its time, and otherwise has the task woken then.
    fn poll_overdue<T>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        let Some(closes_at) = self.activity.closes_at(self.draining.closes_connections()) else {
            return Poll::Pending;
        };
        let closes_at = closes_at.into();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(closes_at)));
        if alarm.deadline() != closes_at {
            alarm.as_mut().reset(closes_at);
        }
        alarm.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: ActixStream> AsyncRead for LimitedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = match self.activity.may_read() {
            Read::UpTo(limit) => limit.min(buffer.remaining()),
            Read::Later => {
                self.activity.give_turn();
                context.waker().wake_by_ref();
                return self.poll_overdue(context);
            }
            Read::AfterWrite => {
                self.read_is_held = true;
                return self.poll_overdue(context);
            }
        };
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        match Pin::new(&mut self.stream).poll_read(context, &mut part) {
            Poll::Ready(Ok(())) => {
                let bytes = part.filled().len();
                buffer.advance(bytes);
                if bytes > 0 {
                    self.activity.read(bytes, Instant::now());
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.poll_overdue(context),
        }
    }
}

impl<S: ActixStream> AsyncWrite for LimitedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            return written;
        }
        self.activity.write_blocked(Instant::now());
        self.poll_overdue(context)
    }

    /// actix flushes whenever it has written all that it has, also where that was nothing.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.activity.flushed();
            if self.read_is_held && self.activity.may_read() != Read::AfterWrite {
                self.read_is_held = false;
                context.waker().wake_by_ref();
            }
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Lets TLS be spoken over it.
impl<S: ActixStream> ActixStream for LimitedStream<S> {
    fn poll_read_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_read_ready(context)
    }

    fn poll_write_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        self.stream.poll_write_ready(context)
    }
}
