//! The pieces of a text that a model generates about an image, and the sink that sends them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concord_models::{GenerateRequest, Generated, Pixels};
use concord_policy::VoteFailure;
use tokio::sync::mpsc;

use super::replica::QueuePermit;
use crate::Trace;
use crate::deadline::SharedDeadline;

/// A part of a text on its way to the reader.
#[derive(Debug)]
pub enum TextEvent {
    /// A piece that is certain.
    Piece(String),
    /// The end: the whole text, or why there is none. Comes once, and last.
    Done(Result<GenerateOutput, VoteFailure>),
}

/// A whole text, and how long it took.
#[derive(Debug)]
pub struct GenerateOutput {
    /// The text, with its token counts.
    pub generated: Generated,
    /// The time in the queue, ready to run.
    pub queue: Duration,
    /// The time in the model.
    pub model: Duration,
}

/// A request for a text in the queue, ready to run.
#[derive(Debug)]
pub(crate) struct TextEntry {
    pub(crate) request: GenerateRequest,
    pub(crate) pixels: Pixels,
    pub(crate) permit: QueuePermit,
    pub(crate) deadline: Arc<SharedDeadline>,
    /// The text's span.
    pub(crate) trace: Trace,
    pub(crate) sink: TokenSink,
    pub(crate) queued: Instant,
}

/// The sending end of a text. It ends the text exactly once: at the latest when it is dropped, which happens
/// to whatever a panic finds on its way.
#[derive(Debug)]
pub(crate) struct TokenSink(Option<mpsc::Sender<TextEvent>>);

impl TokenSink {
    /// Creates a sink and the receiver of its text. `pieces` is the most that there can be, so the channel
    /// never fills.
    pub(crate) fn new(pieces: usize) -> (Self, mpsc::Receiver<TextEvent>) {
        let (sender, receiver) = mpsc::channel(pieces + 2);
        (Self(Some(sender)), receiver)
    }

    /// Sends a piece; `Break` when nobody reads any more.
    pub(super) fn piece(&self, text: &str) -> ControlFlow<()> {
        let Some(sender) = &self.0 else { return ControlFlow::Break(()) };
        match sender.try_send(TextEvent::Piece(text.to_owned())) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Ends the text.
    pub(crate) fn done(mut self, outcome: Result<GenerateOutput, VoteFailure>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Result<GenerateOutput, VoteFailure>) {
        if let Some(sender) = self.0.take() {
            // Whoever has left needs no answer.
            let _left = sender.try_send(TextEvent::Done(outcome));
        }
    }
}

impl Drop for TokenSink {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { "the model panicked" } else { "the model is gone" };
        self.end(Err(VoteFailure::new(reason)));
    }
}
