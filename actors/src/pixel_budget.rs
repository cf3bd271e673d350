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
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// The pixels that one image has taken; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct PixelPermit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl PixelBudget {
    /// Creates a budget of `pixels`.
    pub(crate) fn new(pixels: u64) -> Self {
        let small = pixels / SMALL_SHARE;
        let semaphore = |pixels: u64| Arc::new(Semaphore::new(units(pixels) as usize));
        Self { small: semaphore(small), large: semaphore(pixels - small) }
    }

    /// Waits, in the order of arrival, until an image of this declared width and height may be decoded. `None`
    /// where it never may, because it is larger than the whole budget.
    pub(crate) async fn take(&self, size: [u32; 2]) -> Option<PixelPermit> {
        let lane = match Lane::of(Some(size)) {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        };
        let units = units(u64::from(size[0]) * u64::from(size[1]));
        // The semaphores are never closed.
        Arc::clone(lane).acquire_many_owned(units).await.ok().map(PixelPermit)
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
}
