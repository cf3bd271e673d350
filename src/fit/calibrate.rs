//! Fits the calibration of each model: a temperature or, with more than two labels, vector scaling, each
//! evaluated on images that it was not fitted on.

use concord_policy::{Calibration, Logits, Member, Policy, Temperature};

use super::cross_fit::{CrossFit, FOLDS, Part};
use super::solve::temperature;
use super::vector_scaling::vector_scaling;
use crate::evaluate::{LabeledExample, log_loss};

/// The least number of labels for vector scaling. With two, a scale and a bias for each are hardly more than
/// a temperature and one bias, which a head has anyway.
const LABELS_MIN_FOR_VECTORS: usize = 3;

/// A method of calibration, fitted without each fold, and on all images.
#[derive(Debug)]
pub(crate) struct Fitted {
    pub(crate) part: Part<Calibration>,
    by_fold: Vec<Calibration>,
}

impl Fitted {
    /// Returns the calibration fitted without this fold; for `None`, the one fitted on all images.
    fn without(&self, fold: Option<usize>) -> &Calibration {
        fold.and_then(|fold| self.by_fold.get(fold)).unwrap_or(&self.part.fitted)
    }
}

/// The fitted calibrations of one model.
#[derive(Debug)]
pub(crate) struct Calibrations {
    /// The temperature, compared with the configured calibration.
    pub(crate) temperature: Fitted,
    /// Vector scaling, compared with the better one of the temperature and the configured calibration; `None`
    /// with two labels.
    pub(crate) vector: Option<Fitted>,
}

impl Calibrations {
    /// Returns the one to be written; `None` if neither is significantly better.
    fn gain(&self) -> Option<&Fitted> {
        let fitted = self.vector.iter().chain([&self.temperature]);
        fitted.into_iter().find(|fitted| fitted.part.is_gain())
    }

    /// Returns the calibration to be written; `None` if it does not change.
    pub(crate) fn gained(&self) -> Option<&Calibration> {
        self.gain().map(|fitted| &fitted.part.fitted)
    }

    /// Returns the best calibration fitted without this fold; for `None`, on all images.
    pub(super) fn best(&self, without: Option<usize>) -> &Calibration {
        self.gain().map_or(&self.temperature.part.now, |fitted| fitted.without(without))
    }
}

/// Returns `policy` with the best calibration of each member, in their order, fitted without this fold.
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

/// Returns the calibrated probabilities of a member for an image; `None` if the vote is invalid.
pub(super) fn calibrated(
    image: &LabeledExample<'_>,
    member: usize,
    calibration: &Calibration,
) -> Option<Vec<f64>> {
    Some(logits(image, member)?.calibrated(calibration).probabilities().to_vec())
}

fn logits<'a>(image: &LabeledExample<'a>, member: usize) -> Option<Logits<'a>> {
    let logits = &image.votes.get(member)?.output.logits;
    Logits::new(logits, logits.len()).ok()
}

impl CrossFit<'_> {
    /// Fits the calibrations of each member.
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

    /// Fits a calibration without each fold and on all images, and compares it with `otherwise`, the
    /// calibration of each fold that it would replace.
    fn fitted(
        &self,
        member: usize,
        now: &Calibration,
        otherwise: &[Calibration],
        fit: impl Fn(Option<usize>) -> Option<Calibration>,
    ) -> Option<Fitted> {
        let by_fold: Vec<Calibration> = (0..FOLDS).map(|fold| fit(Some(fold))).collect::<Option<_>>()?;
        let change = |(image, &fold): (&LabeledExample<'_>, &usize)| {
            let nll = |calibration: &Calibration| {
                Some(log_loss(&calibrated(image, member, calibration)?, image.label))
            };
            Some(nll(&by_fold[fold])? - nll(&otherwise[fold])?)
        };
        let changes: Vec<f64> = self.images.iter().zip(&self.fold_of).map(change).collect::<Option<_>>()?;
        let part = Part { now: now.clone(), fitted: fit(None)?, change: self.bootstrap.mean(&changes) };
        Some(Fitted { part, by_fold })
    }

    fn temperature(&self, member: usize, without: Option<usize>) -> Option<f64> {
        let (logits, labels): (Vec<&[f32]>, Vec<usize>) = self
            .outside_fold(without)
            .map(|image| (image.votes[member].output.logits.as_slice(), image.label))
            .unzip();
        temperature(&logits, &labels)
    }

    fn vector(&self, member: usize, without: Option<usize>) -> Option<Calibration> {
        let labels: Vec<usize> = self.outside_fold(without).map(|image| image.label).collect();
        let of_image = |image: &LabeledExample<'_>| Some(logits(image, member)?.log_probabilities());
        let log_probabilities: Vec<Vec<f64>> =
            self.outside_fold(without).map(of_image).collect::<Option<_>>()?;
        let temperature = self.temperature(member, without)?;
        vector_scaling(&log_probabilities, &labels, temperature).map(Calibration::Vector)
    }
}

#[cfg(test)]
mod tests;
