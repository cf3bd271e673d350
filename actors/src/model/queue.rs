//! What waits for a model's thread, and which of it runs together.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concord_models::{Pixels, TaskId};

use super::text::TextEntry;
use super::{Place, Seat};
use crate::ticket::Unwanted;
use crate::voter::Wanted;
use concord_policy::VoteFailure;

/// One image, ready to run.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) task: TaskId,
    pub(super) pixels: Pixels,
    pub(super) place: Place,
    pub(super) wanted: Wanted,
    pub(super) preprocess: Duration,
    pub(super) queued: Instant,
}

/// What waits.
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
    fn unwanted(&self) -> Option<Unwanted> {
        match self {
            Self::Vote(entry) => entry.wanted.ticket.unwanted(),
            Self::Text(entry) => entry.ticket.unwanted(),
        }
    }

    fn is_of(&self, wanted: TaskId) -> bool {
        matches!(self, Self::Vote(entry) if entry.task == wanted)
    }

    /// Answers whoever asked.
    fn expire(self) {
        match self {
            Self::Vote(entry) => entry.wanted.reply.expired(),
            Self::Text(entry) => entry.sink.done(Err(VoteFailure::expired())),
        }
    }
}

/// Something else to be done on the model's thread, before the next batch.
pub(super) type Job = Box<dyn FnOnce(&mut Seat) + Send>;

/// What the thread does next.
pub(super) enum Work {
    /// Images of one task, at least one, all of them wanted a moment ago.
    Batch(Vec<Entry>),
    /// A text, alone: each of its words is a forward of its own.
    Text(Box<TextEntry>),
    Job(Job),
    /// Nothing will come any more.
    Closed,
}

/// Shared by those who fill it and the one thread that empties it. A lock and a condition rather than a channel:
/// taking a batch looks at all that waits.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Images that have a place and are still being made ready: worth a short wait.
    expected: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// No more than there are places.
    entries: VecDeque<Item>,
    /// As many as there are changes of the configuration.
    jobs: VecDeque<Job>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("State").field("entries", &self.entries.len()).finish_non_exhaustive()
    }
}

impl Queue {
    /// One more image is on its way.
    pub(super) fn expect(&self) {
        self.expected.fetch_add(1, Ordering::AcqRel);
    }

    /// It does not come after all.
    pub(super) fn expect_one_less(&self) {
        self.expected.fetch_sub(1, Ordering::AcqRel);
        // Under the lock, or a thread that has just seen the old number would sleep through this.
        let _state = self.state();
        self.changed.notify_one();
    }

    pub(super) fn push(&self, mut entry: Entry) {
        entry.place.arrived = true;
        self.add(Item::Vote(entry));
    }

    pub(super) fn push_text(&self, mut entry: Box<TextEntry>) {
        entry.place.arrived = true;
        self.add(Item::Text(entry));
    }

    fn add(&self, entry: Item) {
        let mut state = self.state();
        self.expected.fetch_sub(1, Ordering::AcqRel);
        if state.closed {
            drop(state);
            return drop(entry);
        }
        state.entries.push_back(entry);
        self.changed.notify_one();
    }

    pub(super) fn run(&self, job: Job) {
        let mut state = self.state();
        if !state.closed {
            state.jobs.push_back(job);
            self.changed.notify_one();
        }
    }

    /// Takes nothing more; what is queued still runs.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Answers all that is queued by dropping it.
    pub(super) fn clear(&self) {
        let dropped = std::mem::take(&mut self.state().entries);
        drop(dropped);
    }

    /// Waits for something to do: at most `max_batch` images of one task, as it is by then. The first of them waits for others at most
    /// `max_delay`, and only while some are on their way. What is not wanted any more is answered, and told to
    /// `on_dropped`.
    pub(super) fn take(
        &self,
        mut max_batch: impl FnMut() -> usize,
        max_delay: Duration,
        mut on_dropped: impl FnMut(Unwanted),
    ) -> Work {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Work::Job(job);
            }
            for (entry, why) in state.take_unwanted() {
                on_dropped(why);
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
            let others_may_come = self.expected.load(Ordering::Acquire) > 0 && !state.closed;
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
    fn take_unwanted(&mut self) -> Vec<(Item, Unwanted)> {
        let mut unwanted = Vec::new();
        let mut index = 0;
        while index < self.entries.len() {
            match self.entries[index].unwanted() {
                Some(why) => unwanted.extend(self.entries.remove(index).map(|entry| (entry, why))),
                None => index += 1,
            }
        }
        unwanted
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
