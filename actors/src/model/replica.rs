//! One replica of a model as its users see it: a queue, and permits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::queue::Queue;

/// A replica of a model.
#[derive(Debug)]
pub(crate) struct Replica {
    /// The number of the replica, from 0.
    pub(crate) index: usize,
    /// The name of its device.
    pub(crate) device: String,
    pub(super) queue: Queue,
    /// The images that wait for it or run in it.
    depth: AtomicUsize,
    /// The most of them when one more is admitted for a request that no model has been asked for yet.
    capacity: usize,
    /// True while its thread has died and is not back yet. Requests that are queued meanwhile would wait, and
    /// a thread that dies again and again empties its queue sooner than others: without this flag it would be
    /// the least loaded.
    is_down: AtomicBool,
}

/// A permit for one image that waits for a replica or runs in it; released on drop.
#[derive(Debug)]
pub(crate) struct QueuePermit {
    pub(crate) replica: Arc<Replica>,
    /// The gauge of the model's queue depth, all replicas together.
    gauge: prometheus::IntGauge,
    /// True once its image has been queued.
    pub(super) arrived: bool,
}

impl Replica {
    pub(super) fn new(index: usize, device: String, capacity: usize) -> Self {
        Self {
            index,
            device,
            queue: Queue::default(),
            depth: AtomicUsize::new(0),
            capacity,
            is_down: AtomicBool::new(false),
        }
    }

    /// Returns how many images wait for it or run in it.
    pub(super) fn depth(&self) -> usize {
        self.depth.load(Ordering::Acquire)
    }

    pub(super) fn is_full(&self) -> bool {
        self.depth() >= self.capacity
    }

    pub(super) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::Release);
    }

    /// Reserves a permit, if there is one. A request under way always gets one: refusing it would waste what
    /// has been computed for it, and admission bounds how many there are.
    fn reserve(self: &Arc<Self>, is_under_way: bool, gauge: &prometheus::IntGauge) -> Option<QueuePermit> {
        let one_more = |depth: usize| (is_under_way || depth < self.capacity).then_some(depth + 1);
        self.depth.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        gauge.inc();
        self.queue.announce_pending();
        Some(QueuePermit { replica: Arc::clone(self), gauge: gauge.clone(), arrived: false })
    }
}

/// Reserves a permit, for a request that is under way already or a new one, with the least loaded replica: those whose thread is there before those that wait for
/// theirs, then those with the fewest images, then those whose turn it is. One that is full is passed over;
/// `None` where all are.
pub(super) fn reserve(
    replicas: &[Arc<Replica>],
    turn: usize,
    is_under_way: bool,
    gauge: &prometheus::IntGauge,
) -> Option<QueuePermit> {
    if let [only] = replicas {
        return only.reserve(is_under_way, gauge);
    }
    let in_turn = (0..replicas.len()).map(|offset| &replicas[turn.wrapping_add(offset) % replicas.len()]);
    let mut order: Vec<(bool, usize, &Arc<Replica>)> =
        in_turn.map(|replica| (replica.is_down.load(Ordering::Acquire), replica.depth(), replica)).collect();
    // Stable, so that turns count among equals. Others may have taken the last place of the first meanwhile.
    order.sort_by_key(|(is_down, depth, _)| (*is_down, *depth));
    order.into_iter().find_map(|(_, _, replica)| replica.reserve(is_under_way, gauge))
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.gauge.dec();
        self.replica.depth.fetch_sub(1, Ordering::AcqRel);
        if !self.arrived {
            self.replica.queue.cancel_pending();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(count: usize, capacity: usize) -> Vec<Arc<Replica>> {
        (0..count).map(|index| Arc::new(Replica::new(index, "cpu".to_owned(), capacity))).collect()
    }

    #[test]
    fn the_least_loaded_replica_that_is_up_and_has_a_permit_is_taken() {
        let depth = prometheus::IntGauge::new("depth", "of all").unwrap();
        let replicas = replicas(3, 2);
        let take = |turn| reserve(&replicas, turn, false, &depth);
        let index = |permit: &Option<QueuePermit>| permit.as_ref().map(|permit| permit.replica.index);

        let first = take(1);
        assert_eq!(index(&first), Some(1), "all are empty: whose turn it is");
        let others: Vec<_> = (0..2).map(|_| take(1)).collect();
        assert_eq!(
            others.iter().map(index).collect::<Vec<_>>(),
            [Some(2), Some(0)],
            "the emptier ones first"
        );
        drop(first);
        replicas[1].set_down(true);
        let full: Vec<_> = (0..2).map(|_| take(1)).collect();
        assert_eq!(
            full.iter().map(index).collect::<Vec<_>>(),
            [Some(2), Some(0)],
            "1 is empty, but not there"
        );
        let rest: Vec<_> = (0..2).map(|_| take(0)).collect();
        assert_eq!(rest.iter().map(index).collect::<Vec<_>>(), [Some(1), Some(1)], "and better than none");
        assert_eq!((index(&take(0)), depth.get()), (None, 6), "all are full");
        let under_way = reserve(&replicas, 0, true, &depth);
        assert_eq!((index(&under_way), depth.get()), (Some(0), 7), "but not for a request under way");
        drop(under_way);
        drop((others, full, rest));
        assert_eq!((depth.get(), replicas.iter().map(|replica| replica.depth()).sum::<usize>()), (0, 0));
    }
}
