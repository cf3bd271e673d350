//! The validation of a task's section: a policy, or all errors at once.

mod calibration;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::calibration::Calibration;
use crate::cascade::{AcceptRule, Member, Stage};
use crate::error::{PathPart, PolicyError, Problem};
use crate::fusion::FusionMethod;
use crate::policy::Policy;
use crate::probability::{Probability, Weight};
use crate::section::{AcceptSection, StageSection, TaskSection};

/// The template of a task with neither prompts nor templates: the form that zero-shot models were trained on
/// most.
const DEFAULT_TEMPLATE: &str = "a photo of {label}.";

/// The part of a template that the label replaces.
const LABEL_SLOT: &str = "{label}";

/// The range of a weight.
const WEIGHT: Range = Range {
    what: "a weight",
    allowed: "must be greater than 0 and finite; a model that should not count costs nothing when you take it out of \
        the stages instead",
};

/// The default answers to a question with two labels.
const YES_NO: [&str; 2] = ["NO", "YES"];

/// The range of a threshold.
const THRESHOLD: &str = "must be greater than 0 and at most 1";

/// The least number of labels of a question.
const LABELS_MIN: usize = 2;

impl Policy {
    /// Validates a task. `known_models` are the names of the configured models.
    ///
    /// # Errors
    /// All errors of the section, with paths that start inside it.
    pub fn from_section(
        section: &TaskSection,
        known_models: &BTreeSet<String>,
    ) -> Result<Self, Vec<PolicyError>> {
        let mut check = Check { section, known_models, errors: Vec::new() };
        check.question();
        check.labels();
        let prompts = check.prompts();
        let answers = check.answers();
        check.learned();
        let fusion = check.fusion_method();
        let weights = check.weights();
        let calibrations = check.calibrations();
        let stages = check.stages(&weights, &calibrations);
        let (question, labels) = (section.question.clone(), section.labels.clone());
        match fusion {
            Some(fusion) if check.errors.is_empty() => {
                Ok(Self { question, labels, prompts, answers, fusion, learned: None, stages })
            }
            _ => Err(check.errors),
        }
    }
}

/// A kind of number, with its range.
#[derive(Clone, Copy)]
struct Range {
    /// Its name, with its article.
    what: &'static str,
    allowed: &'static str,
}

impl Range {
    fn refuses(self, value: f64) -> Problem {
        Problem::OutOfRange { value, what: self.what, allowed: self.allowed }
    }
}

/// A collector of errors; each method checks one part of the section and returns as much of it as is valid.
struct Check<'a> {
    section: &'a TaskSection,
    known_models: &'a BTreeSet<String>,
    errors: Vec<PolicyError>,
}

impl Check<'_> {
    fn error(&mut self, path: impl Into<Vec<PathPart>>, problem: Problem) {
        self.errors.push(PolicyError::new(path, problem));
    }

    fn not_a_model(&self, name: &str) -> Option<Problem> {
        (!self.known_models.contains(name))
            .then(|| unknown_name(name, "a configured model", self.known_models))
    }

    fn question(&mut self) {
        if is_blank(&self.section.question) {
            let allowed = "must be what is asked about the image";
            self.error(["question".into()], Problem::MissingOrEmpty { allowed });
        }
    }

    fn labels(&mut self) {
        let labels = &self.section.labels;
        if labels.len() < LABELS_MIN {
            self.error(["labels".into()], Problem::TooFewLabels { given: labels.len() });
        }
        for (index, label) in labels.iter().enumerate() {
            if is_blank(label) {
                let problem = Problem::BlankLabel { label: label.clone() };
                self.error(["labels".into(), index.into()], problem);
            } else if labels[..index].contains(label) {
                let problem = Problem::RepeatedLabel { label: label.clone() };
                self.error(["labels".into(), index.into()], problem);
            }
        }
    }

    /// Returns the prompts of each label: its own, otherwise the templates with the label filled in.
    fn prompts(&mut self) -> Vec<Vec<String>> {
        let section = self.section;
        let labels = || section.labels.iter().map(String::as_str);
        for (label, prompts) in &section.prompts {
            if !section.labels.contains(label) {
                let problem = unknown_name(label, "a label of this task", &section.labels);
                self.error(["prompts".into(), label.as_str().into()], problem);
            }
            if prompts.is_empty() {
                let allowed = "must hold a prompt, or be left out so that the templates apply";
                self.error(["prompts".into(), label.as_str().into()], Problem::Empty { allowed });
            }
            for (index, _) in prompts.iter().enumerate().filter(|(_, prompt)| is_blank(prompt)) {
                let path = ["prompts".into(), label.as_str().into(), index.into()];
                self.error(path, Problem::Empty { allowed: "must be a text that stands for the label" });
            }
        }
        let templates = self.templates();
        let filled =
            |label: &str| templates.iter().map(|template| template.replace(LABEL_SLOT, label)).collect();
        labels().map(|label| section.prompts.get(label).cloned().unwrap_or_else(|| filled(label))).collect()
    }

    fn templates(&mut self) -> Vec<String> {
        let Some(templates) = &self.section.prompt_templates else {
            return vec![DEFAULT_TEMPLATE.to_owned()];
        };
        if templates.is_empty() {
            let allowed = "must hold a template, or be left out for \"a photo of {label}.\"";
            self.error(["prompt_templates".into()], Problem::Empty { allowed });
        }
        for (index, template) in templates.iter().enumerate() {
            if !template.contains(LABEL_SLOT) {
                let problem = Problem::TemplateWithoutLabel { template: template.clone() };
                self.error(["prompt_templates".into(), index.into()], problem);
            }
        }
        templates.clone()
    }

    /// Returns the answer of each label: its own, otherwise that of a yes-no question, otherwise the label.
    fn answers(&mut self) -> Vec<String> {
        let section = self.section;
        for (label, answer) in &section.answers {
            let path = ["answers".into(), label.as_str().into()];
            if !section.labels.contains(label) {
                self.error(path.clone(), unknown_name(label, "a label of this task", &section.labels));
            }
            if is_blank(answer) {
                let allowed = "must be what a model answers when it means the label";
                self.error(path, Problem::Empty { allowed });
            }
        }
        let default = |index: usize| {
            if section.labels.len() == YES_NO.len() { YES_NO[index] } else { &section.labels[index] }
        };
        let answer = |(index, label): (usize, &String)| {
            section.answers.get(label).map_or(default(index), String::as_str).trim().to_owned()
        };
        let answers: Vec<String> = section.labels.iter().enumerate().map(answer).collect();
        for (index, answer) in answers.iter().enumerate() {
            let same = |other: &String| other.eq_ignore_ascii_case(answer);
            if answers[..index].iter().any(same) && !is_blank(answer) {
                self.error(["answers".into()], Problem::RepeatedAnswer { answer: answer.clone() });
            }
        }
        answers
    }

    fn learned(&mut self) {
        if self.section.learned.as_deref().is_some_and(is_blank) {
            let allowed = "must be a file that `concord fit` wrote";
            self.error(["learned".into()], Problem::Empty { allowed });
        }
    }

    /// Reports a setting that has no effect without a learned file, where there is none.
    fn needs_learned(&mut self, path: impl Into<Vec<PathPart>>, what: &'static str) {
        if self.section.learned.is_none() {
            self.error(path, Problem::NeedsLearned { what });
        }
    }

    fn fusion_method(&mut self) -> Option<FusionMethod> {
        let name = &self.section.fusion.method;
        let method = FusionMethod::by_name(name);
        if method.is_none() {
            let problem = unknown_name(name, "a fusion method", FusionMethod::ALL.map(FusionMethod::name));
            self.error(["fusion".into(), "method".into()], problem);
        }
        if method == Some(FusionMethod::Learned) {
            self.needs_learned(["fusion".into(), "method".into()], "\"learned\"");
        }
        method
    }

    /// Returns the checked weights by model.
    fn weights(&mut self) -> BTreeMap<String, Weight> {
        let section = self.section;
        let path = ["fusion".into(), "weights".into()];
        let weights = self.positive_by_model(&path, &section.fusion.weights, Weight::new, WEIGHT);
        for model in section.stages.iter().flat_map(|stage| &stage.models) {
            let is_missing =
                !section.fusion.weights.is_empty() && !section.fusion.weights.contains_key(model);
            if is_missing && self.known_models.contains(model) {
                let allowed = "must be given for every model of the stages, or for none";
                let path = ["fusion".into(), "weights".into(), model.as_str().into()];
                self.error(path, Problem::Missing { allowed });
            }
        }
        weights
    }

    /// Checks a table of a number for each model.
    fn positive_by_model<T>(
        &mut self,
        path: &[PathPart],
        table: &BTreeMap<String, f64>,
        parse: fn(f64) -> Option<T>,
        range: Range,
    ) -> BTreeMap<String, T> {
        let mut parsed = BTreeMap::new();
        for (model, &value) in table {
            let place = [path, &[model.as_str().into()]].concat();
            if let Some(problem) = self.not_a_model(model) {
                self.error(place.clone(), problem);
            }
            match parse(value) {
                Some(number) => {
                    parsed.insert(model.clone(), number);
                }
                None => self.error(place, range.refuses(value)),
            }
        }
        parsed
    }

    /// Returns the stages. They are only used if no error was reported, so they may lack parts otherwise.
    fn stages(
        &mut self,
        weights: &BTreeMap<String, Weight>,
        calibrations: &BTreeMap<String, Calibration>,
    ) -> Vec<Stage> {
        let section = self.section;
        if section.stages.is_empty() {
            let allowed = "must be at least one stage, with the models to ask";
            self.error(["stages".into()], Problem::Missing { allowed });
        }
        self.models_of_stages();
        let member = |model: &String, optional: &[String]| Member {
            model: Arc::from(model.as_str()),
            required: !optional.contains(model),
            weight: weights.get(model).copied().unwrap_or(Weight::UNIFORM),
            calibration: calibrations.get(model).cloned().unwrap_or(Calibration::NEUTRAL),
        };
        let mut stages = Vec::with_capacity(section.stages.len());
        for (index, stage) in section.stages.iter().enumerate() {
            let members = stage.models.iter().map(|model| member(model, &stage.optional)).collect();
            let accept = stage.accept.as_ref().and_then(|accept| self.accept_rule(index, accept));
            let burst_queue_depth = self.burst(index, stage);
            let min_weight = stage.min_weight.and_then(|value| self.min_weight(index, value));
            stages.push(Stage { members, accept, burst_queue_depth, min_weight });
        }
        stages
    }

    /// Checks the queue depth above which a stage stands in for earlier ones.
    fn burst(&mut self, index: usize, section: &StageSection) -> Option<usize> {
        let path = ["stages".into(), index.into(), "burst_queue_depth".into()];
        let depth = section.burst_queue_depth?;
        if index == 0 {
            let reason = "there is none before it that could be busy";
            self.error(path, Problem::UselessInFirstStage { reason });
        } else if section.models.iter().any(|model| !section.optional.contains(model)) {
            self.error(path, Problem::BurstNeedsOptional);
        }
        Some(depth)
    }

    /// Checks the share above which a stage is worth asking.
    fn min_weight(&mut self, index: usize, value: f64) -> Option<Probability> {
        let path = ["stages".into(), index.into(), "min_weight".into()];
        if index == 0 {
            let reason = "there is no answer yet without it";
            self.error(path, Problem::UselessInFirstStage { reason });
            return None;
        }
        self.needs_learned(path.clone(), "a least weight");
        let share = Probability::new(value).filter(|share| share.get() > 0.0 && share.get() < 1.0);
        if share.is_none() {
            let range = Range { what: "a share", allowed: "must be greater than 0 and less than 1" };
            self.error(path, range.refuses(value));
        }
        share
    }

    /// Checks that every stage asks configured models, and none asks one that votes already.
    fn models_of_stages(&mut self) {
        let mut stage_of = BTreeMap::new();
        for (stage, section) in self.section.stages.iter().enumerate() {
            let path = |list: &str, index: usize| ["stages".into(), stage.into(), list.into(), index.into()];
            if section.models.is_empty() {
                let allowed = "must name at least one configured model";
                let path = ["stages".into(), stage.into(), "models".into()];
                self.error(path, Problem::MissingOrEmpty { allowed });
            }
            for (index, model) in section.models.iter().enumerate() {
                if let Some(problem) = self.not_a_model(model) {
                    self.error(path("models", index), problem);
                } else if let Some(earlier) = stage_of.insert(model.as_str(), stage) {
                    let problem = Problem::AskedTwice { model: model.clone(), stage: earlier };
                    self.error(path("models", index), problem);
                }
            }
            for (index, model) in section.optional.iter().enumerate() {
                if !section.models.contains(model) {
                    let problem = unknown_name(model, "one of this stage's models", &section.models);
                    self.error(path("optional", index), problem);
                }
            }
        }
    }

    fn accept_rule(&mut self, stage: usize, section: &AcceptSection) -> Option<AcceptRule> {
        let path = |key: &str| ["stages".into(), stage.into(), "accept".into(), key.into()];
        let correctness = section.correctness.map(|value| {
            self.needs_learned(path("correctness"), "a correctness estimator");
            self.threshold(path("correctness"), value, "a probability")
        });
        let Some(value) = section.confidence else {
            self.error(path("confidence"), Problem::Missing { allowed: THRESHOLD });
            return None;
        };
        let confidence = self.threshold(path("confidence"), value, "a confidence")?;
        Some(AcceptRule { confidence, correctness: correctness.flatten(), agreement: section.agreement })
    }

    fn threshold(
        &mut self,
        path: impl Into<Vec<PathPart>>,
        value: f64,
        what: &'static str,
    ) -> Option<Probability> {
        let least = Probability::new(value).filter(|least| least.get() > 0.0);
        if least.is_none() {
            self.error(path, Range { what, allowed: THRESHOLD }.refuses(value));
        }
        least
    }
}

fn unknown_name(name: &str, what: &'static str, allowed: impl IntoIterator<Item = impl ToString>) -> Problem {
    let allowed = allowed.into_iter().map(|name| name.to_string()).collect();
    Problem::UnknownName { name: name.to_owned(), what, allowed }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
