//! Identical requests that are in flight at once share one computation, which belongs to none of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;

use super::cascade::Computed;
use super::error::RouteError;
use crate::digest::Digest;
use crate::ticket::{Ticket, Waiter};

/// What a computation ends with.
pub(super) type Outcome = Result<Arc<Computed>, RouteError>;

/// Where those who wait for a computation get its outcome; an error where it died.
pub(super) type Arrival = Shared<oneshot::Receiver<Outcome>>;

/// The computations in flight, of all routers: one for each key. A lock, because the routers are on several
/// threads; held for a lookup.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<Digest, (Arc<Ticket>, Arrival)>>);

/// What a request has of the computation that will answer it.
pub(super) struct Boarding {
    /// As long as it is kept, the computation is wanted.
    pub(super) waiter: Waiter,
    pub(super) arrival: Arrival,
    /// What the computation needs, where this request has to start it.
    pub(super) start: Option<Start>,
}

/// A computation that is to be started.
pub(super) struct Start {
    pub(super) ticket: Arc<Ticket>,
    pub(super) outcome: oneshot::Sender<Outcome>,
}

impl Boarding {
    /// A computation that nobody else can join.
    pub(super) fn alone(deadline: Instant) -> Self {
        let (ticket, waiter) = Ticket::new(deadline);
        let (outcome, arrival) = oneshot::channel();
        Self { waiter, arrival: arrival.shared(), start: Some(Start { ticket, outcome }) }
    }
}

impl Flights {
    /// Joins the computation of `key`, or begins one.
    pub(super) fn board(&self, key: Digest, deadline: Instant) -> Boarding {
        let mut flights = self.flights();
        if let Some((ticket, arrival)) = flights.get(&key)
            && let Some(waiter) = ticket.join(deadline)
        {
            return Boarding { waiter, arrival: arrival.clone(), start: None };
        }
        let boarding = Boarding::alone(deadline);
        if let Some(start) = &boarding.start {
            flights.insert(key, (Arc::clone(&start.ticket), boarding.arrival.clone()));
        }
        boarding
    }

    /// Takes a computation off the list, unless another has taken its place.
    pub(super) fn land(&self, key: &Digest, ticket: &Arc<Ticket>) {
        let mut flights = self.flights();
        if flights.get(key).is_some_and(|(listed, _)| Arc::ptr_eq(listed, ticket)) {
            flights.remove(key);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<Digest, (Arc<Ticket>, Arrival)>> {
        // Nothing is done under the lock that could panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
