//! Single flight: identical requests that are in flight at once share one computation, which belongs to none
//! of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use concord_policy::Verdict;
use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::oneshot;

use super::error::RouteError;
use crate::deadline::{InterestGuard, SharedDeadline};
use crate::digest::Digest;

/// A verdict, and how long its image took to decode.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(super) verdict: Arc<Verdict>,
    pub(super) decode: Duration,
}

/// The outcome of a computation.
pub(super) type Outcome = Result<Arc<Computed>, RouteError>;

/// The outcome of a computation, for all who wait for it; an error where the computation died.
pub(super) type SharedResult = Shared<oneshot::Receiver<Outcome>>;

/// The computations in flight, of all routers: one for each key. A lock, because the routers are on several
/// threads; held for a lookup.
#[derive(Debug, Default)]
pub(crate) struct SingleFlight(Mutex<HashMap<Digest, (Arc<SharedDeadline>, SharedResult)>>);

/// A request's share in the computation that will answer it.
pub(super) struct Join {
    /// The guard that keeps the computation alive for as long as it is held.
    pub(super) interest: InterestGuard,
    pub(super) result: SharedResult,
    pub(super) role: Role,
}

/// The part that a request plays in a computation.
pub(super) enum Role {
    /// This request has to start the computation.
    Leader(Computation),
    /// Another request has started the computation.
    Follower,
}

/// A computation that is to be started.
pub(super) struct Computation {
    pub(super) deadline: Arc<SharedDeadline>,
    pub(super) outcome: oneshot::Sender<Outcome>,
}

impl Join {
    /// Leads a computation that nobody else can join.
    pub(super) fn alone(deadline: Instant) -> Self {
        let (deadline, interest) = SharedDeadline::new(deadline);
        let (outcome, result) = oneshot::channel();
        Self { interest, result: result.shared(), role: Role::Leader(Computation { deadline, outcome }) }
    }
}

impl SingleFlight {
    /// Joins the computation of `key`, or leads a new one.
    pub(super) fn join(&self, key: Digest, deadline: Instant) -> Join {
        let mut in_flight = self.in_flight();
        if let Some((shared_deadline, result)) = in_flight.get(&key)
            && let Some(interest) = shared_deadline.join(deadline)
        {
            return Join { interest, result: result.clone(), role: Role::Follower };
        }
        let join = Join::alone(deadline);
        if let Role::Leader(computation) = &join.role {
            in_flight.insert(key, (Arc::clone(&computation.deadline), join.result.clone()));
        }
        join
    }

    /// Removes a computation that has ended, unless another has taken its place.
    pub(super) fn finish(&self, key: &Digest, deadline: &Arc<SharedDeadline>) {
        let mut in_flight = self.in_flight();
        if in_flight.get(key).is_some_and(|(listed, _)| Arc::ptr_eq(listed, deadline)) {
            in_flight.remove(key);
        }
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<Digest, (Arc<SharedDeadline>, SharedResult)>> {
        // Nothing is done under the lock that could panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
