//! The state that all routers of a process share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use concord_models::ImageLimits;

use super::admission::Admission;
use super::error::RouteError;
use super::single_flight::SingleFlight;
use crate::metrics::Metrics;
use crate::pixel_budget::PixelBudget;
use crate::plan::{Plan, RunningModels};
use crate::pool::Pool;
use crate::startup::Startup;

/// The state of all routers.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) plan: ArcSwap<Plan>,
    /// Set once the models are loaded.
    pub(crate) running: OnceLock<RunningModels>,
    pub(crate) is_ready: AtomicBool,
    pub(crate) startup: Startup,
    pub(crate) single_flight: SingleFlight,
    pub(crate) admission: Admission,
    pub(crate) pool: Pool,
    pub(crate) pixels: PixelBudget,
    pub(crate) metrics: Metrics,
    pub(crate) image_limits: ImageLimits,
}

impl Shared {
    /// Returns whether an image of this declared width and height may be decoded.
    pub(super) fn admits_size(&self, [width, height]: [u32; 2]) -> bool {
        u64::from(width) * u64::from(height) <= self.image_limits.max_pixels
    }

    /// Refuses requests while the models are being loaded or warmed up.
    pub(super) fn check_ready(&self) -> Result<(), RouteError> {
        if self.is_ready.load(Ordering::Acquire) { Ok(()) } else { Err(RouteError::NotReady) }
    }
}
