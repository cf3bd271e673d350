//! The bytes of request bodies that the process holds, of all requests together: a budget, with a part of its
//! own for small bodies, so that a few large or slow ones cannot refuse everybody else. Bytes count when they
//! have arrived, so that clients that only promise them hold nothing.

use std::sync::Arc;

use actix_web::web::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::problem::{Problem, ProblemKind};

/// The largest body that counts as small: most images that are not photographs at a phone's full resolution.
const SMALL_BYTES: u64 = 1 << 20;
/// The part of the budget that is for small bodies: one in this many.
const SMALL_SHARE: u64 = 4;
/// The unit of the permits, which are counted in 32 bits.
const UNIT_BYTES: u64 = 1 << 10;
/// The least step in which bytes are reserved.
const STEP_BYTES: u64 = 64 << 10;

/// The budget of a process.
#[derive(Debug, Clone)]
pub(super) struct BodyBudget {
    small: Part,
    large: Part,
}

/// A part of the budget.
#[derive(Debug, Clone)]
struct Part {
    permits: Arc<Semaphore>,
    total: u32,
}

/// The bytes that one body has reserved; given back when it is dropped.
#[derive(Debug)]
pub(super) struct BodyReservation {
    part: Part,
    permit: Option<OwnedSemaphorePermit>,
    bytes: u64,
    /// The most bytes that it will ever hold.
    most: u64,
}

/// The bytes of an image together with their reservation.
struct ReservedBytes {
    bytes: Bytes,
    _reservation: BodyReservation,
}

impl BodyBudget {
    /// Creates a budget of `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        let small = bytes / SMALL_SHARE;
        Self { small: Part::new(small), large: Part::new(bytes - small) }
    }

    /// Begins a body that will hold at most `most` bytes, and reserves none of them yet.
    ///
    /// # Errors
    /// Returns a problem if the budget does not have so many at this moment.
    pub(super) fn open(&self, most: u64) -> Result<BodyReservation, Problem> {
        let is_small = most <= SMALL_BYTES && units(most) <= self.small.total;
        let part = if is_small { &self.small } else { &self.large };
        if part.permits.available_permits() < units(most) as usize {
            return Err(exhausted());
        }
        Ok(BodyReservation { part: part.clone(), permit: None, bytes: 0, most })
    }
}

impl Part {
    fn new(bytes: u64) -> Self {
        let total = units(bytes);
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }
}

impl BodyReservation {
    /// Makes sure that `bytes`, which are about to be held, have been reserved.
    ///
    /// # Errors
    /// Returns a problem if the budget does not have them.
    pub(super) fn hold(&mut self, bytes: u64) -> Result<(), Problem> {
        if bytes <= self.bytes {
            return Ok(());
        }
        // Doubled, so that a large body reserves a few times.
        let target = (self.bytes * 2).max(STEP_BYTES).min(self.most).max(bytes);
        let more = units(target) - units(self.bytes);
        let more = Arc::clone(&self.part.permits).try_acquire_many_owned(more).map_err(|_| exhausted())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        self.bytes = target;
        Ok(())
    }

    /// Returns `image` with the reservation, which ends when the last clone of the bytes is gone.
    pub(super) fn kept_with(self, image: Bytes) -> Bytes {
        Bytes::from_owner(ReservedBytes { bytes: image, _reservation: self })
    }
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn exhausted() -> Problem {
    let detail = "too many bytes of request bodies are being held (max_body_bytes_in_flight)";
    Problem::new(ProblemKind::Busy, detail)
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bodies_that_have_arrived_leave_the_part_of_small_ones_alone() {
        let budget = BodyBudget::new(64 * MIB);
        let mut held = Vec::new();
        let mut arrive = |bytes| {
            let mut reservation = budget.open(bytes)?;
            let outcome = reservation.hold(bytes);
            held.push(reservation);
            outcome
        };
        assert!(arrive(30 * MIB).is_ok());
        assert_eq!(arrive(30 * MIB).unwrap_err().kind, ProblemKind::Busy, "48 MiB are for large bodies");
        for _ in 0..16 {
            assert!(arrive(MIB).is_ok());
        }
        assert_eq!(arrive(MIB).unwrap_err().kind, ProblemKind::Busy, "16 MiB are for small bodies");
        held.clear();
        assert!(budget.open(48 * MIB).unwrap().hold(48 * MIB).is_ok(), "everything has been given back");
    }

    #[test]
    fn bodies_that_are_only_promised_hold_nothing() {
        let budget = BodyBudget::new(8 * MIB);
        let promised: Vec<_> = (0..1000).map(|_| budget.open(MIB)).collect();
        assert!(promised.iter().all(Result::is_ok));
        assert!(budget.open(MIB).unwrap().hold(MIB).is_ok());
    }

    #[test]
    fn a_body_reserves_as_it_grows_and_never_more_than_it_may_have() {
        let budget = BodyBudget::new(8 * MIB);
        let mut reservation = budget.open(6 * MIB).unwrap();
        for held in (0..=6 * MIB).step_by(1000) {
            reservation.hold(held).unwrap();
        }
        reservation.hold(6 * MIB).unwrap();
        assert!(budget.open(2 * MIB).is_err(), "all that is for large bodies is held");
        let image = reservation.kept_with(Bytes::from_static(b"image"));
        let clone = image.clone();
        drop(image);
        assert!(budget.open(2 * MIB).is_err(), "a clone holds it as well");
        drop(clone);
        assert!(budget.open(6 * MIB).unwrap().hold(6 * MIB).is_ok(), "everything has been given back");
    }

    #[test]
    fn a_small_body_may_be_larger_than_the_part_for_small_ones() {
        assert!(BodyBudget::new(2 * MIB).open(MIB).unwrap().hold(MIB).is_ok());
    }
}
