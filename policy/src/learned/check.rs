//! The check of the learned networks against the task that names them.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Learned;
use crate::error::{PathPart, PolicyError, Problem};
use crate::fusion::FusionMethod;
use crate::section::TaskSection;

impl Learned {
    /// Returns an error for everything that `section` needs and the networks lack, with paths that start
    /// inside the section.
    ///
    /// `local` are the names of the models that run here. The others may have been off when the networks were
    /// fitted: a verdict with a vote of one of them may then be fused by the configured weights, and says so.
    pub fn check(&self, section: &TaskSection, local: &BTreeSet<String>) -> Vec<PolicyError> {
        let check = Check { learned: self, section, local };
        let mut errors = Vec::new();
        errors.extend(check.backbone());
        errors.extend(check.weights());
        for (index, stage) in section.stages.iter().enumerate() {
            if stage.accept.as_ref().is_some_and(|accept| accept.correctness.is_some()) {
                errors.extend(check.correctness(index));
            }
            if stage.min_weight.is_some() {
                errors.extend(check.min_weight(index));
            }
        }
        errors
    }
}

struct Check<'a> {
    learned: &'a Learned,
    section: &'a TaskSection,
    local: &'a BTreeSet<String>,
}

impl Check<'_> {
    /// Returns the models of the first `stages` stages.
    fn models(&self, stages: usize) -> impl Iterator<Item = &String> {
        self.section.stages.iter().take(stages).flat_map(|stage| &stage.models)
    }

    fn is_local(&self, model: &str) -> bool {
        self.local.contains(model)
    }

    fn backbone(&self) -> Option<PolicyError> {
        let backbone = self.learned.backbone();
        let is_asked = self.models(usize::MAX).any(|model| **model == **backbone);
        let problem = || Problem::BackboneNotAsked { backbone: backbone.to_string() };
        (!is_asked).then(|| PolicyError::new(["learned".into()], problem()))
    }

    fn weights(&self) -> Option<PolicyError> {
        let is_learned = FusionMethod::by_name(&self.section.fusion.method) == Some(FusionMethod::Learned);
        let local = self.models(usize::MAX).filter(|model| self.is_local(model));
        let path = vec!["fusion".into(), "method".into()];
        is_learned.then(|| self.lacks_weights(path, local)).flatten()
    }

    fn min_weight(&self, index: usize) -> Option<PolicyError> {
        let own = &self.section.stages[index].models;
        let earlier = self.models(index).filter(|model| self.is_local(model));
        let path = vec!["stages".into(), index.into(), "min_weight".into()];
        self.backbone_is_late(path.clone(), index).or_else(|| self.lacks_weights(path, earlier.chain(own)))
    }

    fn lacks_weights<'a>(
        &self,
        path: Vec<PathPart>,
        models: impl Iterator<Item = &'a String>,
    ) -> Option<PolicyError> {
        let models: Vec<String> = models.filter(|model| !self.learned.weighs(model)).cloned().collect();
        (!models.is_empty()).then(|| PolicyError::new(path, Problem::NoLearnedWeights { models }))
    }

    fn correctness(&self, index: usize) -> Option<PolicyError> {
        let path = vec!["stages".into(), index.into(), "accept".into(), "correctness".into()];
        let names = |is_counted: &dyn Fn(&str) -> bool| -> Vec<Arc<str>> {
            let models = self.models(index + 1).map(String::as_str);
            models.filter(|model| is_counted(model)).map(Arc::from).collect()
        };
        let all = names(&|_| true);
        let has_estimator = self.learned.has_estimator(&all)
            || self.learned.has_estimator(&names(&|name| self.is_local(name)));
        let problem = || Problem::NoLearnedEstimator { models: self.models(index + 1).cloned().collect() };
        self.backbone_is_late(path.clone(), index + 1)
            .or_else(|| (!has_estimator).then(|| PolicyError::new(path, problem())))
    }

    /// Returns an error if the backbone is asked after the first `stages` stages.
    fn backbone_is_late(&self, path: Vec<PathPart>, stages: usize) -> Option<PolicyError> {
        let backbone = self.learned.backbone();
        let is_backbone = |model: &String| **model == **backbone;
        let is_late = !self.models(stages).any(is_backbone) && self.models(usize::MAX).any(is_backbone);
        let problem = Problem::BackboneAskedLater { backbone: backbone.to_string() };
        is_late.then(|| PolicyError::new(path, problem))
    }
}
