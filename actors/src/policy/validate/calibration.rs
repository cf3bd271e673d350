//! Temperatures and vector scaling, of which a model has one at most.

use std::collections::BTreeMap;

use super::super::calibration::{Calibration, VectorScaling};
use super::super::fault::PathPart;
use super::super::probability::Temperature;
use super::super::section::ScalingSection;
use super::Check;

const NOT_A_TEMPERATURE: &str = "is not a temperature: must be greater than 0 and finite";

const NOT_A_SCALE: &str = "is not a scale: must be greater than 0 and finite";

const NOT_A_BIAS: &str = "is not a bias: must be finite";

impl Check<'_> {
    /// The checked calibrations by model.
    pub(super) fn calibrations(&mut self) -> BTreeMap<String, Calibration> {
        let section = self.section;
        let temperatures = self.positive_by_model(
            &["calibration".into()],
            &section.calibration,
            Temperature::new,
            NOT_A_TEMPERATURE,
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

    /// One model's vector scaling, where nothing is wrong with it.
    fn scaling(&mut self, model: &str, scaling: &ScalingSection) -> Option<VectorScaling> {
        let path = || ["scaling".into(), model.into()];
        if let Some(message) = self.not_a_model(model) {
            self.fault(path(), message);
        }
        if self.section.calibration.contains_key(model) {
            let message = format!("is given beside calibration.{model}: keep one of the two");
            self.fault(path(), message);
        }
        self.one_for_each_label(model, "scale", &scaling.scale, VectorScaling::is_scale, NOT_A_SCALE);
        self.one_for_each_label(model, "bias", &scaling.bias, f64::is_finite, NOT_A_BIAS);
        VectorScaling::new(scaling.scale.clone(), scaling.bias.clone())
    }

    fn one_for_each_label(
        &mut self,
        model: &str,
        key: &str,
        values: &[f64],
        is_right: fn(f64) -> bool,
        refusal: &str,
    ) {
        let path = || -> [PathPart; 3] { ["scaling".into(), model.into(), key.into()] };
        let labels = self.section.labels.len();
        if values.is_empty() {
            self.fault(path(), "is missing or empty: must hold a number for each label, in their order");
        } else if values.len() != labels {
            let message =
                format!("{} numbers for {labels} labels: must be one for each, in their order", values.len());
            self.fault(path(), message);
        }
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !is_right(**value)) {
            let [section, model, key] = path();
            self.fault([section, model, key, index.into()], format!("{value} {refusal}"));
        }
    }
}
