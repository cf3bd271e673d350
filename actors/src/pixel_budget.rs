//! The pixels of the images that are decoded at this moment, of all requests together: a budget, with a part of
//! its own for small images.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pool::Lane;

/// The part of the budget that is for small images: one in this many.
const SMALL_SHARE: u64 = 4;
/// The unit of the permits, which are counted in 32 bits.
const UNIT_PIXELS: u64 = 1 << 10;

/// The budget of a process.
#[derive(Debug)]
pub(crate) struct PixelBudget {
    small: Part,
    large: Part,
}

/// A part of the budget.
#[derive(Debug)]
struct Part {
    permits: Arc<Semaphore>,
    total: u32,
}

/// The pixels that one image has taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct PixelPermit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl PixelBudget {
    /// Creates a budget of `pixels`.
    pub(crate) fn new(pixels: u64) -> Self {
        let small = pixels / SMALL_SHARE;
        Self { small: Part::new(small), large: Part::new(pixels - small) }
    }

    /// Waits, in the order of arrival, until an image of this declared width and height may be decoded. One that
    /// is larger than its part of the budget waits until it has all of it.
    pub(crate) async fn take(&self, size: [u32; 2]) -> Option<PixelPermit> {
        let units = units(u64::from(size[0]) * u64::from(size[1]));
        let part = match Lane::of(Some(size)) {
            Lane::Small if units <= self.small.total => &self.small,
            _ => &self.large,
        };
        let permit = Arc::clone(&part.permits).acquire_many_owned(units.min(part.total)).await;
        // The semaphores are never closed.
        permit.ok().map(PixelPermit)
    }
}

impl Part {
    fn new(pixels: u64) -> Self {
        let total = units(pixels);
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }
}

fn units(pixels: u64) -> u32 {
    u32::try_from(pixels.div_ceil(UNIT_PIXELS)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_image_waits_for_pixels_and_small_ones_never_for_large_ones() {
        let budget = PixelBudget::new(64 << 20);
        let large = [6000, 6000];
        let first = budget.take(large).now_or_never().flatten();
        assert!(first.is_some());
        let mut second = Box::pin(budget.take(large));
        assert!((&mut second).now_or_never().is_none(), "48 Mi pixels are for large images");
        let small: Vec<_> = (0..8).map(|_| budget.take([1920, 1080]).now_or_never().flatten()).collect();
        assert!(small.iter().all(Option::is_some));
        assert!(budget.take([1920, 1080]).now_or_never().is_none(), "16 Mi pixels are for small images");
        drop(first);
        assert!(second.await.is_some());
    }

    #[tokio::test]
    async fn every_image_gets_its_pixels_however_small_the_budget_is() {
        let budget = PixelBudget::new(2_000_000);
        for size in [[1000, 1000], [1414, 1414], [8000, 8000]] {
            assert!(budget.take(size).now_or_never().flatten().is_some(), "{size:?}");
        }
    }
}
