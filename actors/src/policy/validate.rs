//! From what a person wrote to a policy, or to everything that is wrong with it.

mod calibration;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::calibration::Calibration;
use super::fault::{Fault, PathPart, not_one_of};
use super::fusion::FusionMethod;
use super::probability::{Probability, Weight};
use super::rules::{AcceptRule, Member, Policy, Stage};
use super::section::{AcceptSection, StageSection, TaskSection};

/// For a task with neither prompts nor templates: the form that zero-shot models were trained on most.
const DEFAULT_TEMPLATE: &str = "a photo of {label}.";

/// What a template puts the label in place of.
const LABEL_SLOT: &str = "{label}";

const NOT_A_WEIGHT: &str = "is not a weight: must be greater than 0 and finite; a model that should not count costs \
    nothing when you take it out of the stages instead";

/// What is said of what cannot be without a learned file.
const NEEDS_LEARNED: &str = "needs learned = FILE, which `concord fit` writes";

/// What the answers to a question with two labels are where nothing else is said.
const YES_NO: [&str; 2] = ["NO", "YES"];

/// What a threshold may be.
const LEAST: &str = "must be greater than 0 and at most 1";

/// Fewer are no question.
const LABELS_MIN: usize = 2;

impl Policy {
    /// Validates a task. `known_models` are the names of the configured models.
    ///
    /// # Errors
    /// Every fault that the section has, with paths that start inside it.
    pub fn from_section(section: &TaskSection, known_models: &BTreeSet<String>) -> Result<Self, Vec<Fault>> {
        let mut check = Check { section, known_models, faults: Vec::new() };
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
            Some(fusion) if check.faults.is_empty() => {
                Ok(Self { question, labels, prompts, answers, fusion, learned: None, stages })
            }
            _ => Err(check.faults),
        }
    }
}

/// Collects faults; each method checks one part of the section and gives what it could make of it.
struct Check<'a> {
    section: &'a TaskSection,
    known_models: &'a BTreeSet<String>,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn fault<const DEPTH: usize>(&mut self, path: [PathPart; DEPTH], message: impl Into<String>) {
        self.faults.push(Fault::new(path.into(), message));
    }

    fn not_a_model(&self, name: &str) -> Option<String> {
        let known = self.known_models.iter().map(String::as_str);
        (!self.known_models.contains(name)).then(|| not_one_of(name, "a configured model", known))
    }

    fn question(&mut self) {
        if is_blank(&self.section.question) {
            self.fault(["question".into()], "is missing or empty: must be what is asked about the image");
        }
    }

    fn labels(&mut self) {
        let labels = &self.section.labels;
        if labels.len() < LABELS_MIN {
            let message = format!("{} given: must be at least {LABELS_MIN}", labels.len());
            self.fault(["labels".into()], message);
        }
        for (index, label) in labels.iter().enumerate() {
            if is_blank(label) {
                self.fault(["labels".into(), index.into()], format!("{label:?} is empty: must be a text"));
            } else if labels[..index].contains(label) {
                let message = format!("{label:?} stands here twice: labels must differ");
                self.fault(["labels".into(), index.into()], message);
            }
        }
    }

    /// The prompts of each label: its own, otherwise the templates with the label filled in.
    fn prompts(&mut self) -> Vec<Vec<String>> {
        let section = self.section;
        let labels = || section.labels.iter().map(String::as_str);
        for (label, prompts) in &section.prompts {
            if !section.labels.contains(label) {
                let message = not_one_of(label, "a label of this task", labels());
                self.fault(["prompts".into(), label.as_str().into()], message);
            }
            if prompts.is_empty() {
                let message = "is empty: must hold a prompt, or be left out so that the templates apply";
                self.fault(["prompts".into(), label.as_str().into()], message);
            }
            for (index, _) in prompts.iter().enumerate().filter(|(_, prompt)| is_blank(prompt)) {
                let path = ["prompts".into(), label.as_str().into(), index.into()];
                self.fault(path, "is empty: must be a text that stands for the label");
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
            let message = format!("is empty: must hold a template, or be left out for {DEFAULT_TEMPLATE:?}");
            self.fault(["prompt_templates".into()], message);
        }
        for (index, template) in templates.iter().enumerate() {
            if !template.contains(LABEL_SLOT) {
                let message =
                    format!("{template:?} would be the same for every label: must contain {LABEL_SLOT}");
                self.fault(["prompt_templates".into(), index.into()], message);
            }
        }
        templates.clone()
    }

    /// The answer of each label: its own, otherwise that of a yes-no question, otherwise the label.
    fn answers(&mut self) -> Vec<String> {
        let section = self.section;
        for (label, answer) in &section.answers {
            let path = ["answers".into(), label.as_str().into()];
            if !section.labels.contains(label) {
                let labels = section.labels.iter().map(String::as_str);
                self.fault(path.clone(), not_one_of(label, "a label of this task", labels));
            }
            if is_blank(answer) {
                self.fault(path, "is empty: must be what a model answers when it means the label");
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
                let message =
                    format!("{answer:?} stands for two labels: answers must differ in more than case");
                self.fault(["answers".into()], message);
            }
        }
        answers
    }

    fn learned(&mut self) {
        if self.section.learned.as_deref().is_some_and(is_blank) {
            self.fault(["learned".into()], "is empty: must be a file that `concord fit` wrote");
        }
    }

    /// Says so where there is no learned file.
    fn needs_learned<const DEPTH: usize>(&mut self, path: [PathPart; DEPTH], what: &str) {
        if self.section.learned.is_none() {
            self.fault(path, format!("{what} {NEEDS_LEARNED}"));
        }
    }

    fn fusion_method(&mut self) -> Option<FusionMethod> {
        let name = &self.section.fusion.method;
        let method = FusionMethod::by_name(name);
        if method.is_none() {
            let message = not_one_of(name, "a fusion method", FusionMethod::ALL.map(FusionMethod::name));
            self.fault(["fusion".into(), "method".into()], message);
        }
        if method == Some(FusionMethod::Learned) {
            self.needs_learned(["fusion".into(), "method".into()], "\"learned\"");
        }
        method
    }

    /// The checked weights by model.
    fn weights(&mut self) -> BTreeMap<String, Weight> {
        let section = self.section;
        let path = ["fusion".into(), "weights".into()];
        let weights = self.positive_by_model(&path, &section.fusion.weights, Weight::new, NOT_A_WEIGHT);
        for model in section.stages.iter().flat_map(|stage| &stage.models) {
            let is_missing =
                !section.fusion.weights.is_empty() && !section.fusion.weights.contains_key(model);
            if is_missing && self.known_models.contains(model) {
                let message = "is missing: must be given for every model of the stages, or for none";
                self.fault(["fusion".into(), "weights".into(), model.as_str().into()], message);
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
        refusal: &str,
    ) -> BTreeMap<String, T> {
        let mut parsed = BTreeMap::new();
        for (model, &value) in table {
            let place = [path, &[model.as_str().into()]].concat();
            if let Some(message) = self.not_a_model(model) {
                self.faults.push(Fault::new(place.clone(), message));
            }
            match parse(value) {
                Some(number) => {
                    parsed.insert(model.clone(), number);
                }
                None => self.faults.push(Fault::new(place, format!("{value} {refusal}"))),
            }
        }
        parsed
    }

    /// The stages; what they lack has been reported, and they are only used where nothing has.
    fn stages(
        &mut self,
        weights: &BTreeMap<String, Weight>,
        calibrations: &BTreeMap<String, Calibration>,
    ) -> Vec<Stage> {
        let section = self.section;
        if section.stages.is_empty() {
            self.fault(["stages".into()], "is missing: must be at least one stage, with the models to ask");
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

    /// A stage that may stand in for earlier ones.
    fn burst(&mut self, index: usize, section: &StageSection) -> Option<usize> {
        let path = ["stages".into(), index.into(), "burst_queue_depth".into()];
        let depth = section.burst_queue_depth?;
        if index == 0 {
            self.fault(path, "is of no use in the first stage: there is none before it that could be busy");
        } else if section.models.iter().any(|model| !section.optional.contains(model)) {
            let message = "needs a stage of optional models: where they fail, the earlier stage is asked";
            self.fault(path, message);
        }
        Some(depth)
    }

    /// A stage that is asked only where it would count for enough.
    fn min_weight(&mut self, index: usize, value: f64) -> Option<Probability> {
        let path = ["stages".into(), index.into(), "min_weight".into()];
        if index == 0 {
            self.fault(path, "is of no use in the first stage: there is no answer yet without it");
            return None;
        }
        self.needs_learned(path.clone(), "a least weight");
        let share = Probability::new(value).filter(|share| share.get() > 0.0 && share.get() < 1.0);
        if share.is_none() {
            self.fault(path, format!("{value} is not a share: must be greater than 0 and less than 1"));
        }
        share
    }

    /// Every stage asks configured models, and none asks one that votes already.
    fn models_of_stages(&mut self) {
        let mut stage_of = BTreeMap::new();
        for (stage, section) in self.section.stages.iter().enumerate() {
            let path = |list: &str, index: usize| ["stages".into(), stage.into(), list.into(), index.into()];
            if section.models.is_empty() {
                let message = "is missing or empty: must name at least one configured model";
                self.fault(["stages".into(), stage.into(), "models".into()], message);
            }
            for (index, model) in section.models.iter().enumerate() {
                if let Some(message) = self.not_a_model(model) {
                    self.fault(path("models", index), message);
                } else if let Some(earlier) = stage_of.insert(model.as_str(), stage) {
                    let message =
                        format!("{model:?} is asked in stages[{earlier}] already: a model votes once");
                    self.fault(path("models", index), message);
                }
            }
            for (index, model) in section.optional.iter().enumerate() {
                if !section.models.contains(model) {
                    let models = section.models.iter().map(String::as_str);
                    self.fault(
                        path("optional", index),
                        not_one_of(model, "one of this stage's models", models),
                    );
                }
            }
        }
    }

    fn accept_rule(&mut self, stage: usize, section: &AcceptSection) -> Option<AcceptRule> {
        let path = |key: &str| ["stages".into(), stage.into(), "accept".into(), key.into()];
        let gate = section.gate.map(|value| {
            self.needs_learned(path("gate"), "a gate");
            self.least(path("gate"), value, "probability")
        });
        let Some(value) = section.confidence else {
            self.fault(path("confidence"), format!("is missing: {LEAST}"));
            return None;
        };
        let confidence = self.least(path("confidence"), value, "confidence")?;
        Some(AcceptRule { confidence, gate: gate.flatten(), agreement: section.agreement })
    }

    /// The least of something that an answer must have.
    fn least<const DEPTH: usize>(
        &mut self,
        path: [PathPart; DEPTH],
        value: f64,
        what: &str,
    ) -> Option<Probability> {
        let least = Probability::new(value).filter(|least| least.get() > 0.0);
        if least.is_none() {
            self.fault(path, format!("{value} is not a {what}: {LEAST}"));
        }
        least
    }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}
