//! The prologue of every request, whichever message brought it: it is counted as in flight, admitted or
//! refused, and bound to its deadline and its client.

use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::error::RouteError;

/// The permits of `max_in_flight`, shared by all routers of a process.
#[derive(Debug)]
pub(crate) struct Admission {
    permits: Arc<Semaphore>,
    max_in_flight: usize,
    in_flight: IntGauge,
}

/// A request that has arrived, counted in `concord_in_flight_requests` until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(IntGauge);

/// An admitted request's permit; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Admission {
    /// Creates `max_in_flight` permits; `in_flight` counts the requests.
    pub(crate) fn new(max_in_flight: usize, in_flight: &IntGauge) -> Self {
        Self { permits: Arc::new(Semaphore::new(max_in_flight)), max_in_flight, in_flight: in_flight.clone() }
    }

    /// Counts a request that has arrived.
    pub(super) fn arrive(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Returns a permit, or refuses the request at once: nothing waits here.
    pub(super) fn admit(&self) -> Result<Permit, RouteError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned();
        permit.map(Permit).map_err(|_| {
            let max = self.max_in_flight;
            RouteError::busy(format!("too many requests in flight (max_in_flight = {max})"))
        })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Waits for `work` until the deadline passes or the client leaves, which is `RouteError::Expired`.
pub(super) async fn while_wanted<T>(
    deadline: Instant,
    client_left: &CancellationToken,
    work: impl Future<Output = T>,
) -> Result<T, RouteError> {
    tokio::select! {
        outcome = work => Ok(outcome),
        () = tokio::time::sleep_until(deadline.into()) => Err(RouteError::Expired),
        () = client_left.cancelled() => Err(RouteError::Expired),
    }
}
