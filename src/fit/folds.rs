//! Values that are made of all images, and once more without each fold, so that its images are evaluated by a
//! value that has not seen them.

use std::panic::resume_unwind;
use std::thread;

use concord_policy::Policy;

use super::cross_fit::FOLDS;

/// A function that returns the policy by which images of a fold are evaluated, or for `None` the policy to be
/// written.
pub(super) type PolicyForFold<'a> = &'a (dyn Fn(Option<usize>) -> Option<Policy> + Sync);

/// A value for each fold, made without that fold, and a value made of all images.
#[derive(Debug)]
pub(super) struct PerFold<T> {
    by_fold: Vec<T>,
    whole: T,
}

impl<T: Send> PerFold<T> {
    /// Makes all values, in parallel; `None` if one cannot be made.
    pub(super) fn of(make: impl Fn(Option<usize>) -> Option<T> + Sync) -> Option<Self> {
        let (make, folds) = (&make, (0..FOLDS).map(Some).chain([None]));
        thread::scope(|scope| {
            let making: Vec<_> = folds.map(|without| scope.spawn(move || make(without))).collect();
            let made =
                making.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            // All threads are joined before any result is looked at.
            let mut by_fold = made.collect::<Vec<_>>().into_iter().collect::<Option<Vec<T>>>()?;
            let whole = by_fold.pop()?;
            Some(Self { by_fold, whole })
        })
    }

    /// Returns the value made without this fold; for `None`, the value made of all images.
    pub(super) fn without(&self, fold: Option<usize>) -> Option<&T> {
        fold.map_or(Some(&self.whole), |fold| self.by_fold.get(fold))
    }
}
