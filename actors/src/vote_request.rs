//! A request for one vote, as it travels from the router through a queue to whichever model gives it.

use std::sync::Arc;

use crate::Trace;
use crate::deadline::SharedDeadline;
use crate::vote_reply::Reply;

/// A request for one vote, answered exactly once by its `reply`.
#[derive(Debug)]
pub(crate) struct VoteRequest {
    pub(crate) deadline: Arc<SharedDeadline>,
    /// The stage that it is for, from 0: later ones go first, since their requests are under way.
    pub(crate) stage: usize,
    /// The stage's span, and from the model's client on the vote's.
    pub(crate) trace: Trace,
    pub(crate) reply: Reply,
}
