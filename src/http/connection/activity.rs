//! The activity of one connection: what may still be read, and when it has been waited for long enough. Pure,
//! with the clock passed in.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The time that a client may take to send a request's head. actix knows this limit only for the first head of
/// a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which a client may leave responses unread once the buffers of both sides are full.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The same once the process is shutting down.
const WRITE_TIMEOUT_DRAINING: Duration = Duration::from_secs(1);
/// The most bytes that are read at once of what may be heads. actix turns all that has been read into requests
/// that wait, and one of thirty bytes then takes some kilobytes.
const HEADS_BYTES: usize = 4 << 10;
/// The most bytes that are read at once of a body, which may have other requests behind it.
const BODY_BYTES: usize = 8 << 10;

/// The activity of a connection, shared by its stream, which sees bytes, and its handlers, which see requests.
#[derive(Debug, Default)]
pub(super) struct Activity {
    phase: Cell<Phase>,
    /// The bytes that have been read since others last had their turn, which they have between two requests and
    /// while a body arrives. Then, and only then, nothing that has been read waits to be answered.
    read_bytes: Cell<usize>,
    /// True if bytes have arrived since the handler began to wait for its body.
    body_arrives: Cell<bool>,
    /// The arrival of the first byte after the last request ended.
    head_since: Cell<Option<Instant>>,
    /// The first write that the client's full window refused, until everything has been written.
    write_blocked_since: Cell<Option<Instant>>,
}

/// The phase of a connection. actix answers a connection's requests one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// No request is being answered.
    #[default]
    Idle,
    /// A handler waits for its request's body.
    Body,
    /// A request whose body is not wanted any more is being answered.
    Answer,
}

/// The decision on a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// At most this many bytes.
    UpTo(usize),
    /// Nothing before others have had their turn.
    Later,
    /// Nothing before responses have been written.
    AfterWrite,
}

impl Activity {
    /// Records that a request's phase has changed.
    pub(super) fn enter(&self, phase: Phase) {
        let left = self.phase.replace(phase);
        if left == phase {
            return;
        }
        self.head_since.set(None);
        // Some bytes more may be read behind a body, because a client's departure shows in a read.
        if left == Phase::Body && self.body_arrives.replace(false) {
            self.read_bytes.set(self.read_bytes.get().min(HEADS_BYTES / 2));
        }
    }

    /// Decides how much may be read now.
    pub(super) fn may_read(&self) -> Read {
        let limit = if self.phase.get() == Phase::Body { BODY_BYTES } else { HEADS_BYTES };
        let left = limit.saturating_sub(self.read_bytes.get());
        match self.phase.get() {
            _ if self.is_write_blocked() => Read::AfterWrite,
            _ if left > 0 => Read::UpTo(left),
            Phase::Idle | Phase::Body => Read::Later,
            Phase::Answer => Read::AfterWrite,
        }
    }

    /// Records that others have their turn.
    pub(super) fn give_turn(&self) {
        self.read_bytes.set(0);
    }

    /// Records that bytes have arrived.
    pub(super) fn read(&self, bytes: usize, now: Instant) {
        self.read_bytes.set(self.read_bytes.get() + bytes);
        match self.phase.get() {
            Phase::Idle if self.head_since.get().is_none() => self.head_since.set(Some(now)),
            Phase::Body => self.body_arrives.set(true),
            Phase::Idle | Phase::Answer => {}
        }
    }

    /// Records that the client's window refused a write.
    pub(super) fn write_blocked(&self, now: Instant) {
        if self.write_blocked_since.get().is_none() {
            self.write_blocked_since.set(Some(now));
        }
    }

    /// Records that everything has been written.
    pub(super) fn flushed(&self) {
        self.write_blocked_since.set(None);
    }

    fn is_write_blocked(&self) -> bool {
        self.write_blocked_since.get().is_some()
    }

    /// Returns the time at which the connection is to be closed if nothing changes until then; `None` where
    /// the client owes nothing. A handler's own time is limited by the request's deadline.
    pub(super) fn closes_at(&self, is_draining: bool) -> Option<Instant> {
        let write_timeout = if is_draining { WRITE_TIMEOUT_DRAINING } else { WRITE_TIMEOUT };
        let write = self.write_blocked_since.get().map(|since| since + write_timeout);
        let head = self.head_since.get().map(|since| since + HEAD_TIMEOUT);
        match (write, head) {
            (Some(write), Some(head)) => Some(write.min(head)),
            (write, head) => write.or(head),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_has_its_time_from_its_first_byte_whichever_request_it_is() {
        let start = Instant::now();
        let activity = Activity::default();
        assert_eq!(activity.closes_at(false), None, "an idle connection owes nothing");
        for request in 0..3 {
            let arrival = start + Duration::from_secs(request * 100);
            activity.read(1, arrival);
            // A byte a second changes nothing.
            activity.read(1, arrival + Duration::from_secs(1));
            assert_eq!(activity.closes_at(false), Some(arrival + HEAD_TIMEOUT), "request {request}");
            activity.enter(Phase::Body);
            activity.read(1, arrival + Duration::from_secs(2));
            assert_eq!(activity.closes_at(false), None, "request {request}: the handler limits its body");
            activity.enter(Phase::Answer);
            activity.enter(Phase::Idle);
            assert_eq!(activity.closes_at(false), None, "request {request}: answered");
        }
    }

    #[test]
    fn responses_that_are_not_read_have_their_time_from_the_first_refused_write() {
        let start = Instant::now();
        let activity = Activity::default();
        activity.enter(Phase::Answer);
        activity.write_blocked(start);
        // A client that reads a byte a second does not get more time.
        activity.write_blocked(start + Duration::from_secs(3));
        assert_eq!(activity.closes_at(false), Some(start + WRITE_TIMEOUT));
        assert_eq!(activity.closes_at(true), Some(start + WRITE_TIMEOUT_DRAINING));
        assert_eq!(activity.may_read(), Read::AfterWrite);
        activity.flushed();
        assert_eq!((activity.closes_at(false), activity.may_read()), (None, Read::UpTo(HEADS_BYTES)));
    }

    #[test]
    fn requests_that_wait_behind_others_are_read_once_those_have_been_answered() {
        let now = Instant::now();
        let activity = Activity::default();
        activity.read(HEADS_BYTES, now);
        assert_eq!(activity.may_read(), Read::Later);
        for _ in 0..3 {
            // A hundred requests have been read: each is answered, and nothing more is read meanwhile.
            for phase in [Phase::Answer, Phase::Idle, Phase::Body, Phase::Answer] {
                activity.enter(phase);
            }
            assert_eq!(activity.may_read(), Read::AfterWrite);
            activity.flushed();
            assert_eq!(activity.may_read(), Read::AfterWrite);
        }
        activity.enter(Phase::Idle);
        assert_eq!(activity.may_read(), Read::Later);
        activity.give_turn();
        assert_eq!(activity.may_read(), Read::UpTo(HEADS_BYTES));
    }

    #[test]
    fn a_body_is_read_in_turns_and_a_departure_is_noticed_behind_it() {
        let now = Instant::now();
        let activity = Activity::default();
        activity.enter(Phase::Body);
        for _ in 0..3 {
            assert_eq!(activity.may_read(), Read::UpTo(BODY_BYTES));
            activity.read(BODY_BYTES, now);
            assert_eq!(activity.may_read(), Read::Later);
            activity.give_turn();
        }
        activity.read(BODY_BYTES, now);
        activity.enter(Phase::Answer);
        assert_eq!(activity.may_read(), Read::UpTo(HEADS_BYTES / 2));
        activity.read(HEADS_BYTES / 2, now);
        assert_eq!(activity.may_read(), Read::AfterWrite);
    }
}
