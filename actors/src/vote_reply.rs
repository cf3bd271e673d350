//! Defines the one reply that every image gets.

use tokio::sync::oneshot;

use crate::Trace;
use concord_policy::{Cost, ModelOutput, VoteFailure};

/// The uncalibrated output of a model for an image, and its cost.
#[derive(Debug)]
pub(crate) struct VoteReply {
    pub(crate) outcome: Result<ModelOutput, VoteFailure>,
    pub(crate) cost: Cost,
    /// The number of images that ran together.
    pub(crate) batch: usize,
    /// The vote's span.
    pub(crate) trace: Trace,
}

impl VoteReply {
    fn failed(failure: VoteFailure) -> Self {
        Self { outcome: Err(failure), cost: Cost::default(), batch: 0, trace: Trace::none() }
    }
}

/// A reply that is sent exactly once: at the latest when it is dropped, as it is when a panic unwinds.
#[derive(Debug)]
pub(crate) struct Reply(Option<oneshot::Sender<VoteReply>>);

impl Reply {
    /// Returns a reply, and the channel on which it arrives.
    pub(crate) fn new() -> (Self, oneshot::Receiver<VoteReply>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(sender)), receiver)
    }

    pub(crate) fn send(mut self, reply: VoteReply) {
        self.answer(reply);
    }

    pub(crate) fn failed(self, reason: String) {
        self.send(VoteReply::failed(VoteFailure::new(reason)));
    }

    /// Nobody waits for it any more, or the deadline has passed.
    pub(crate) fn expired(self) {
        self.send(VoteReply::failed(VoteFailure::expired()));
    }

    fn answer(&mut self, reply: VoteReply) {
        if let Some(sender) = self.0.take() {
            // Whoever has left needs no answer.
            let _left = sender.send(reply);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { "the model panicked" } else { "the model is gone" };
        self.answer(VoteReply::failed(VoteFailure::new(reason)));
    }
}
