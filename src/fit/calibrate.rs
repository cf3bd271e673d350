//! How each model is calibrated: by a temperature or, for more than two labels, by vector scaling, each judged on pictures that
//! it was not fitted on.

use concord_policy::{Calibration, Logits, Member, Policy, Temperature};

use super::cross::{FOLDS, Part, Work};
use super::solve::temperature;
use super::vector::vector_scaling;
use crate::evaluate::{Judged, log_loss};

/// With two labels a scale and a bias for each are hardly more than a temperature and one bias, which is what a head has.
const LABELS_MIN_FOR_VECTORS: usize = 3;

/// One way to calibrate a model, fitted on all folds but each, and on all of them.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) part: Part<Calibration>,
    by_fold: Vec<Calibration>,
}

impl Fitted {
    /// By what pictures of this fold are judged; where it is none, what is written.
    fn without(&self, fold: Option<usize>) -> &Calibration {
        fold.and_then(|fold| self.by_fold.get(fold)).unwrap_or(&self.part.fitted)
    }
}

/// What one model could be calibrated by.
#[derive(Debug)]
pub(crate) struct Calibrations {
    /// Beside what is configured.
    pub(crate) temperature: Fitted,
    /// Beside the better one of the temperature and what is configured; for more than two labels.
    pub(crate) vector: Option<Fitted>,
}

impl Calibrations {
    /// The one that is to be written, if any is better for sure.
    fn gain(&self) -> Option<&Fitted> {
        let fitted = self.vector.iter().chain([&self.temperature]);
        fitted.into_iter().find(|fitted| fitted.part.is_gain())
    }

    /// What is to be written.
    pub(crate) fn gained(&self) -> Option<&Calibration> {
        self.gain().map(|fitted| &fitted.part.fitted)
    }

    /// What is to be used for pictures of this fold; where it is none, for all that come.
    pub(super) fn best(&self, without: Option<usize>) -> &Calibration {
        self.gain().map_or(&self.temperature.part.now, |fitted| fitted.without(without))
    }
}

/// `policy` with what is to be used for pictures of this fold; of each member in their order.
pub(super) fn calibrated_by(
    policy: &Policy,
    calibrations: &[Calibrations],
    without: Option<usize>,
) -> Policy {
    let index = |member: &Member| policy.members().position(|other| other.model() == member.model());
    policy.with_calibrations(|member| {
        let of_member = index(member).and_then(|index| calibrations.get(index));
        of_member.map_or(member.calibration(), |calibrations| calibrations.best(without)).clone()
    })
}

/// What a member says of a picture.
pub(super) fn calibrated(picture: &Judged<'_>, member: usize, calibration: &Calibration) -> Option<Vec<f64>> {
    Some(logits(picture, member)?.calibrated(calibration).probabilities().to_vec())
}

fn logits(picture: &Judged<'_>, member: usize) -> Option<Logits> {
    let logits = &picture.votes.get(member)?.logits;
    Logits::new(logits.clone(), logits.len()).ok()
}

impl Work<'_> {
    /// Of each member.
    pub(super) fn calibrations(&self) -> Option<Vec<Calibrations>> {
        let members = self.policy.members().enumerate();
        members.map(|(index, member)| self.calibrations_of(index, member)).collect()
    }

    fn calibrations_of(&self, index: usize, member: &Member) -> Option<Calibrations> {
        let configured = vec![member.calibration().clone(); FOLDS];
        let temperature = self.fitted(index, member.calibration(), &configured, |without| {
            Some(Calibration::Temperature(Temperature::new(self.temperature(index, without)?)?))
        })?;
        let mut calibrations = Calibrations { temperature, vector: None };
        if self.policy.labels().len() >= LABELS_MIN_FOR_VECTORS {
            let otherwise: Vec<Calibration> =
                (0..FOLDS).map(|fold| calibrations.best(Some(fold)).clone()).collect();
            let now = calibrations.best(None);
            let vector = self.fitted(index, now, &otherwise, |without| self.vector(index, without))?;
            calibrations.vector = Some(vector);
        }
        Some(calibrations)
    }

    /// What `fit` gives for all folds but each, judged beside what is used otherwise.
    fn fitted(
        &self,
        member: usize,
        now: &Calibration,
        otherwise: &[Calibration],
        fit: impl Fn(Option<usize>) -> Option<Calibration>,
    ) -> Option<Fitted> {
        let by_fold: Vec<Calibration> = (0..FOLDS).map(|fold| fit(Some(fold))).collect::<Option<_>>()?;
        let change = |(picture, &fold): (&Judged<'_>, &usize)| {
            let nll = |calibration: &Calibration| {
                Some(log_loss(&calibrated(picture, member, calibration)?, picture.label))
            };
            Some(nll(&by_fold[fold])? - nll(&otherwise[fold])?)
        };
        let changes: Vec<f64> = self.pictures.iter().zip(&self.fold_of).map(change).collect::<Option<_>>()?;
        let part = Part { now: now.clone(), fitted: fit(None)?, change: self.resampling.mean(&changes) };
        Some(Fitted { part, by_fold })
    }

    fn temperature(&self, member: usize, without: Option<usize>) -> Option<f64> {
        let (logits, labels): (Vec<&[f32]>, Vec<usize>) = self
            .chosen(without)
            .map(|picture| (picture.votes[member].logits.as_slice(), picture.label))
            .unzip();
        temperature(&logits, &labels)
    }

    fn vector(&self, member: usize, without: Option<usize>) -> Option<Calibration> {
        let labels: Vec<usize> = self.chosen(without).map(|picture| picture.label).collect();
        let of_picture = |picture: &Judged<'_>| Some(logits(picture, member)?.log_probabilities());
        let log_probabilities: Vec<Vec<f64>> = self.chosen(without).map(of_picture).collect::<Option<_>>()?;
        let temperature = self.temperature(member, without)?;
        vector_scaling(&log_probabilities, &labels, temperature).map(Calibration::Vector)
    }
}

#[cfg(test)]
mod tests;
