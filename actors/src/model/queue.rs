//! The queue of a replica, and which of its entries run together. Requests under way go before new ones.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concord_models::{Pixels, TaskId};
use concord_policy::VoteFailure;

use super::loaded_replica::LoadedReplica;
use super::replica::QueuePermit;
use super::text::TextEntry;
use crate::deadline::CancelReason;
use crate::vote_request::VoteRequest;

/// An image in the queue, ready to run.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) task: TaskId,
    pub(super) pixels: Pixels,
    pub(super) permit: QueuePermit,
    pub(super) request: VoteRequest,
    pub(super) preprocess: Duration,
    pub(super) queued: Instant,
}

/// An entry of the queue.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "votes are the rule, and a box for each would cost an allocation"
)]
enum Item {
    Vote(Entry),
    Text(Box<TextEntry>),
}

impl Item {
    fn cancel_reason(&self) -> Option<CancelReason> {
        match self {
            Self::Vote(entry) => entry.request.deadline.cancel_reason(),
            Self::Text(entry) => entry.deadline.cancel_reason(),
        }
    }

    /// Returns the stage that it is for; a text is a request of its own.
    fn stage(&self) -> usize {
        match self {
            Self::Vote(entry) => entry.request.stage,
            Self::Text(_) => 0,
        }
    }

    fn is_of(&self, task: TaskId) -> bool {
        matches!(self, Self::Vote(entry) if entry.task == task)
    }

    /// Answers that the deadline has passed.
    fn expire(self) {
        match self {
            Self::Vote(entry) => entry.request.reply.expired(),
            Self::Text(entry) => entry.sink.done(Err(VoteFailure::expired())),
        }
    }
}

/// A job for the model's thread, done before the next batch.
pub(super) type Job = Box<dyn FnOnce(&mut LoadedReplica) + Send>;

/// The next piece of work for the thread.
pub(super) enum Work {
    /// Images of one task, at least one; all of them were wanted a moment ago.
    Batch(Vec<Entry>),
    /// A text, alone: each of its words is a forward of its own.
    Text(Box<TextEntry>),
    Job(Job),
    /// The queue is closed and empty.
    Closed,
}

/// A queue shared by those who fill it and the one thread that empties it. A lock and a condition rather than
/// a channel: taking a batch looks at all that waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Images that have a permit and are still being preprocessed: worth a short wait.
    pending: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Later stages first, then in the order of arrival. No more than there are permits.
    entries: VecDeque<Item>,
    /// No more than there are changes of the configuration.
    jobs: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Queue {
    /// Announces one more image that is on its way.
    pub(super) fn announce_pending(&self) {
        self.pending.fetch_add(1, Ordering::AcqRel);
    }

    /// Withdraws the announcement of an image that does not come after all.
    pub(super) fn cancel_pending(&self) {
        self.pending.fetch_sub(1, Ordering::AcqRel);
        // Under the lock, or a thread that has just seen the old number would sleep through this.
        let _state = self.state();
        self.changed.notify_one();
    }

    pub(super) fn push(&self, mut entry: Entry) {
        entry.permit.arrived = true;
        self.add(Item::Vote(entry));
    }

    pub(super) fn push_text(&self, mut entry: Box<TextEntry>) {
        entry.permit.arrived = true;
        self.add(Item::Text(entry));
    }

    fn add(&self, entry: Item) {
        let mut state = self.state();
        self.pending.fetch_sub(1, Ordering::AcqRel);
        if state.closed {
            drop(state);
            return drop(entry);
        }
        let behind = state.entries.partition_point(|queued| queued.stage() >= entry.stage());
        state.entries.insert(behind, entry);
        self.changed.notify_one();
    }

    pub(super) fn run(&self, job: Job) {
        let mut state = self.state();
        if !state.closed {
            state.jobs.push_back(job);
            self.changed.notify_one();
        }
    }

    /// Closes the queue: it takes nothing more, and what is queued still runs.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Drops all entries, which answers them.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut self.state().entries);
        drop(dropped);
    }

    /// Waits for work. A batch has at most `max_batch` images of one task; its first image waits for others
    /// at most `max_delay`, and only while some are on their way. Entries that have been cancelled are
    /// answered and reported to `on_dropped`.
    pub(super) fn take(
        &self,
        mut max_batch: impl FnMut() -> usize,
        max_delay: Duration,
        mut on_dropped: impl FnMut(CancelReason),
    ) -> Work {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Work::Job(job);
            }
            for (entry, reason) in state.take_cancelled() {
                on_dropped(reason);
                entry.expire();
            }
            let (task, waited) = match state.entries.pop_front() {
                Some(Item::Text(text)) => return Work::Text(text),
                Some(Item::Vote(first)) => {
                    let of = (first.task, first.queued.elapsed());
                    state.entries.push_front(Item::Vote(first));
                    of
                }
                None if state.closed => return Work::Closed,
                None => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            let max_batch = max_batch();
            let ready = state.entries.iter().filter(|entry| entry.is_of(task)).count();
            let others_may_come = self.pending.load(Ordering::Acquire) > 0 && !state.closed;
            if ready >= max_batch || waited >= max_delay || !others_may_come {
                return Work::Batch(state.take_batch(task, max_batch));
            }
            let wait = self.changed.wait_timeout(state, max_delay - waited);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is queued is as good after a panic as before it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_cancelled(&mut self) -> Vec<(Item, CancelReason)> {
        let mut cancelled = Vec::new();
        let mut index = 0;
        while index < self.entries.len() {
            match self.entries[index].cancel_reason() {
                Some(reason) => cancelled.extend(self.entries.remove(index).map(|entry| (entry, reason))),
                None => index += 1,
            }
        }
        cancelled
    }

    fn take_batch(&mut self, task: TaskId, max_batch: usize) -> Vec<Entry> {
        let mut batch = Vec::new();
        let mut others = VecDeque::with_capacity(self.entries.len());
        for entry in self.entries.drain(..) {
            match entry {
                Item::Vote(entry) if entry.task == task && batch.len() < max_batch => batch.push(entry),
                other => others.push_back(other),
            }
        }
        self.entries = others;
        batch
    }
}
