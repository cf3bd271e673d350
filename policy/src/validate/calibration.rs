//! The validation of temperatures and vector scaling, of which a model has at most one.

use std::collections::BTreeMap;

use super::{Check, Range};
use crate::calibration::{Calibration, VectorScaling};
use crate::error::{PathPart, Problem};
use crate::probability::Temperature;
use crate::section::ScalingSection;

const TEMPERATURE: Range = Range { what: "a temperature", allowed: "must be greater than 0 and finite" };

const SCALE: Range = Range { what: "a scale", allowed: "must be greater than 0 and finite" };

const BIAS: Range = Range { what: "a bias", allowed: "must be finite" };

impl Check<'_> {
    /// Returns the checked calibrations by model.
    pub(crate) fn calibrations(&mut self) -> BTreeMap<String, Calibration> {
        let section = self.section;
        let temperatures = self.positive_by_model(
            &["calibration".into()],
            &section.calibration,
            Temperature::new,
            TEMPERATURE,
        );
        let mut calibrations: BTreeMap<String, Calibration> = temperatures
            .into_iter()
            .map(|(model, temperature)| (model, Calibration::Temperature(temperature)))
            .collect();
        for (model, scaling) in &section.scaling {
            if let Some(scaling) = self.scaling(model, scaling) {
                calibrations.insert(model.clone(), Calibration::Vector(scaling));
            }
        }
        calibrations
    }

    /// Returns one model's vector scaling, if it has no errors.
    fn scaling(&mut self, model: &str, scaling: &ScalingSection) -> Option<VectorScaling> {
        let path = || ["scaling".into(), model.into()];
        if let Some(problem) = self.not_a_model(model) {
            self.error(path(), problem);
        }
        if self.section.calibration.contains_key(model) {
            self.error(path(), Problem::TwoCalibrations { model: model.to_owned() });
        }
        self.one_for_each_label(model, "scale", &scaling.scale, VectorScaling::is_scale, SCALE);
        self.one_for_each_label(model, "bias", &scaling.bias, f64::is_finite, BIAS);
        VectorScaling::new(scaling.scale.clone(), scaling.bias.clone())
    }

    fn one_for_each_label(
        &mut self,
        model: &str,
        key: &str,
        values: &[f64],
        is_right: fn(f64) -> bool,
        range: Range,
    ) {
        let path = || -> [PathPart; 3] { ["scaling".into(), model.into(), key.into()] };
        let labels = self.section.labels.len();
        if values.is_empty() {
            let allowed = "must hold a number for each label, in their order";
            self.error(path(), Problem::MissingOrEmpty { allowed });
        } else if values.len() != labels {
            self.error(path(), Problem::NumbersPerLabel { found: values.len(), labels });
        }
        for (index, &value) in values.iter().enumerate().filter(|(_, value)| !is_right(**value)) {
            let [section, model, key] = path();
            self.error([section, model, key, index.into()], range.refuses(value));
        }
    }
}
