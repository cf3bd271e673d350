//! The bytes of request bodies that the process holds, of all requests together: a budget, with a part of its
//! own for small bodies, so that a few large or slow ones cannot refuse everybody else.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::{Problem, ProblemKind};

/// The largest body that counts as small: most images that are not photographs at a phone's full resolution.
const SMALL_BYTES: u64 = 1 << 20;
/// The part of the budget that is for small bodies: one in this many.
const SMALL_SHARE: u64 = 4;
/// The unit of the permits, which are counted in 32 bits.
const UNIT_BYTES: u64 = 1 << 10;
/// The step in which a body of undeclared length reserves bytes.
const STEP_BYTES: u64 = 64 << 10;

/// The budget of a process.
#[derive(Debug, Clone)]
pub(super) struct BodyBudget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// The bytes that one body has reserved; given back when it is dropped.
#[derive(Debug)]
pub(super) struct BodyReservation {
    budget: BodyBudget,
    permit: Option<OwnedSemaphorePermit>,
    bytes: u64,
}

impl BodyBudget {
    /// Creates a budget of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let small = bytes / SMALL_SHARE;
        let semaphore = |bytes: u64| Arc::new(Semaphore::new(units(bytes) as usize));
        Self { small: semaphore(small), large: semaphore(bytes - small) }
    }

    /// Returns a reservation of nothing yet.
    pub(super) fn open(&self) -> BodyReservation {
        BodyReservation { budget: self.clone(), permit: None, bytes: 0 }
    }

    fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, Problem> {
        let lane = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        Arc::clone(lane).try_acquire_many_owned(units(bytes)).map_err(|_| {
            let detail = "too many bytes of request bodies are being held (max_body_bytes_in_flight)";
            Problem::new(ProblemKind::Busy, detail)
        })
    }
}

impl BodyReservation {
    /// Reserves `bytes` for the whole body.
    ///
    /// # Errors
    /// Returns a problem if the budget does not have them.
    pub(super) fn declare(&mut self, bytes: u64) -> Result<(), Problem> {
        if bytes > self.bytes {
            // The new permit first: the bytes that are here already stay counted.
            self.permit = Some(self.budget.reserve(bytes)?);
            self.bytes = bytes;
        }
        Ok(())
    }

    /// Makes sure that `bytes`, which are about to be held, have been reserved.
    ///
    /// # Errors
    /// Returns a problem if the budget does not have them.
    pub(super) fn hold(&mut self, bytes: u64) -> Result<(), Problem> {
        // Doubled, so that a body of undeclared length reserves a few times.
        if bytes <= self.bytes { Ok(()) } else { self.declare(bytes.max(self.bytes * 2).max(STEP_BYTES)) }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn large_bodies_leave_the_part_of_small_ones_alone() {
        let budget = BodyBudget::new(64 * MIB);
        let mut held = Vec::new();
        let mut declare = |bytes| {
            let mut reservation = budget.open();
            let outcome = reservation.declare(bytes);
            held.push(reservation);
            outcome
        };
        assert!(declare(30 * MIB).is_ok());
        assert_eq!(declare(30 * MIB).unwrap_err().kind, ProblemKind::Busy, "48 MiB are for large bodies");
        for _ in 0..16 {
            assert!(declare(MIB).is_ok());
        }
        assert_eq!(declare(MIB).unwrap_err().kind, ProblemKind::Busy, "16 MiB are for small bodies");
        held.clear();
        let mut again = budget.open();
        assert!(again.declare(48 * MIB).is_ok(), "everything has been given back");
    }

    #[test]
    fn a_body_of_undeclared_length_reserves_as_it_grows() {
        let budget = BodyBudget::new(8 * MIB);
        let mut reservation = budget.open();
        let mut held = 0;
        while reservation.hold(held + 1000).is_ok() {
            held += 1000;
        }
        assert!((3 * MIB..=6 * MIB).contains(&held), "{held} bytes of the 6 MiB for large bodies");
        drop(reservation);
        assert!(budget.open().declare(6 * MIB).is_ok(), "everything has been given back");
    }
}
