//! Texts that a model writes about an image, piece by piece.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use concord_models::{GenerateRequest, Generated, Pixels};
use tokio::sync::mpsc;

use super::Place;
use crate::Trace;
use crate::ticket::Ticket;
use concord_policy::VoteFailure;

/// What arrives of a text.
#[derive(Debug)]
pub enum TextEvent {
    /// A piece that is certain.
    Piece(String),
    /// The end: the whole, or why there is none. Comes once, and last.
    Done(Result<GenerateOutput, VoteFailure>),
}

/// A text, and what it took.
#[derive(Debug)]
pub struct GenerateOutput {
    /// What the model wrote.
    pub generated: Generated,
    /// Waiting for the model, ready to run.
    pub queue: Duration,
    /// In the model.
    pub model: Duration,
}

/// A text to be written, ready to run.
#[derive(Debug)]
pub(crate) struct TextEntry {
    pub(crate) request: GenerateRequest,
    pub(crate) pixels: Pixels,
    pub(crate) place: Place,
    pub(crate) ticket: Arc<Ticket>,
    /// The text's span.
    pub(crate) trace: Trace,
    pub(crate) sink: TokenSink,
    pub(crate) queued: Instant,
}

/// Sends a text on. Ends it once: at the latest when it is dropped, which happens to whatever a panic finds on its way.
#[derive(Debug)]
pub(crate) struct TokenSink(Option<mpsc::Sender<TextEvent>>);

impl TokenSink {
    /// And where the text arrives. `pieces` is the most that there can be: the channel never fills.
    pub(crate) fn new(pieces: usize) -> (Self, mpsc::Receiver<TextEvent>) {
        let (sender, receiver) = mpsc::channel(pieces + 2);
        (Self(Some(sender)), receiver)
    }

    /// `Break` when nobody reads any more.
    pub(super) fn piece(&self, text: &str) -> ControlFlow<()> {
        let Some(sender) = &self.0 else { return ControlFlow::Break(()) };
        match sender.try_send(TextEvent::Piece(text.to_owned())) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

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
