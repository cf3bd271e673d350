//! The part of a computation that costs more than a look at cached votes: what it is admitted to before it asks
//! its first model, and what it has done since.

use std::sync::Arc;
use std::time::Instant;

use concord_models::declared_size;

use super::cascade::Cascade;
use super::error::RouteError;
use super::images::ScaledImages;
use crate::capacity::UnderWay;
use crate::pool::Lane;

/// The work of one computation.
pub(super) struct Work {
    /// The stages that have asked a model.
    pub(super) asked_stages: usize,
    pub(super) images: Arc<ScaledImages>,
    pub(super) lane: Lane,
    /// Set once it has been admitted to the models.
    under_way: Option<UnderWay>,
}

impl Default for Work {
    fn default() -> Self {
        Self { asked_stages: 0, images: Arc::default(), lane: Lane::Small, under_way: None }
    }
}

impl Work {
    pub(super) fn has_begun(&self) -> bool {
        self.under_way.is_some()
    }

    /// Admits the computation to the models, and waits until its image may be decoded.
    ///
    /// # Errors
    /// When it would not end by its deadline.
    pub(super) async fn begin(&mut self, cascade: &Cascade) -> Result<(), RouteError> {
        // An image that declares no size, or too large a one, is refused by its decoder at once.
        let size = declared_size(&cascade.bytes).filter(|size| cascade.shared.admits_size(*size));
        self.lane = Lane::of(size);
        let capacity = cascade.task.capacities.of(self.lane);
        self.under_way = Some(capacity.admit(Instant::now(), &cascade.deadline)?);
        if let Some(size) = size
            && let Some(pixels) = cascade.shared.pixels.take(size).await
        {
            self.images.keep(pixels);
        }
        Ok(())
    }

    /// Records that the computation has been completed.
    pub(super) fn complete(self) {
        if let Some(under_way) = self.under_way {
            under_way.complete();
        }
    }
}
