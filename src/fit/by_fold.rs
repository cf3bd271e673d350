//! What is made of all pictures, and once more without each fold, so that its pictures are judged by what has not seen them.

use std::panic::resume_unwind;
use std::thread;

use concord_policy::Policy;

use super::cross::FOLDS;

/// The policy by which pictures of a fold are judged; where it is none, what is written.
pub(super) type PolicyOf<'a> = &'a (dyn Fn(Option<usize>) -> Option<Policy> + Sync);

/// Something for each fold, made without it, and something made of all of them.
#[derive(Debug)]
pub(super) struct ByFold<T> {
    by_fold: Vec<T>,
    whole: T,
}

impl<T: Send> ByFold<T> {
    /// Side by side: they do not depend on each other.
    pub(super) fn of(make: impl Fn(Option<usize>) -> Option<T> + Sync) -> Option<Self> {
        let (make, folds) = (&make, (0..FOLDS).map(Some).chain([None]));
        thread::scope(|scope| {
            let making: Vec<_> = folds.map(|without| scope.spawn(move || make(without))).collect();
            let made =
                making.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
            // All are waited for before any is looked at.
            let mut by_fold = made.collect::<Vec<_>>().into_iter().collect::<Option<Vec<T>>>()?;
            let whole = by_fold.pop()?;
            Some(Self { by_fold, whole })
        })
    }

    /// By what pictures of this fold are judged; where it is none, what is written.
    pub(super) fn without(&self, fold: Option<usize>) -> Option<&T> {
        fold.map_or(Some(&self.whole), |fold| self.by_fold.get(fold))
    }
}
