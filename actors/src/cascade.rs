//! The loaded models, and the cascade over them: stage after stage until the policy has its answer.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use concord_models::libtorch::Stream;
use concord_models::{Model, ModelError, ModelOptions, RgbImage, TaskLabels, load_model};

use crate::policy::{Cost, Decision, Logits, Policy, Vote, VoteFailure, decide};

/// Models that could not be loaded, or cannot answer a task that asks them: all of them.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.text())]
pub struct LoadError {
    /// The models' names, each with what was wrong.
    pub failures: Vec<(String, VoteFailure)>,
}

impl LoadError {
    fn text(&self) -> String {
        let lines: Vec<String> =
            self.failures.iter().map(|(name, error)| format!("model {name}: {error}")).collect();
        lines.join("\n")
    }
}

/// Every configured model, loaded and ready for the tasks that ask it.
#[derive(Debug)]
pub struct Cascade {
    models: BTreeMap<Arc<str>, Seat>,
}

/// A model and the stream that its work goes to.
#[derive(Debug)]
struct Seat {
    model: Box<dyn Model>,
    stream: Stream,
}

impl Cascade {
    /// Loads the models, whose relative snapshot paths start at `base`, and prepares in each the tasks that
    /// ask it. `on_start` is told each model's name before its loading.
    ///
    /// # Errors
    /// When any model does not load or cannot answer a task: all of those.
    pub fn load(
        models: &BTreeMap<String, ModelOptions>,
        tasks: &BTreeMap<String, Policy>,
        base: &Path,
        mut on_start: impl FnMut(&str),
    ) -> Result<Self, LoadError> {
        let mut loaded = BTreeMap::new();
        let mut failures = Vec::new();
        for (name, options) in models {
            on_start(name);
            match contained(|| Seat::load(name, options, tasks, base)) {
                Ok(seat) => {
                    loaded.insert(Arc::from(name.as_str()), seat);
                }
                Err(failure) => failures.push((name.clone(), failure)),
            }
        }
        if failures.is_empty() { Ok(Self { models: loaded }) } else { Err(LoadError { failures }) }
    }

    /// The loaded models by name.
    pub fn models(&self) -> impl Iterator<Item = (&str, &dyn Model)> {
        self.models.iter().map(|(name, seat)| (name.as_ref(), seat.model.as_ref()))
    }

    /// Asks the stages in their order until the policy decides. The decision is never [`Decision::Ask`].
    pub fn answer(&self, task: &str, policy: &Policy, image: &RgbImage) -> Decision {
        let mut votes: Vec<Vote> = Vec::new();
        loop {
            let stage = match decide(policy, &votes) {
                Decision::Ask { stage } => stage,
                decision => return decision,
            };
            // Each round adds the votes of one stage, so there are no more rounds than stages.
            for member in policy.stages()[stage].members() {
                votes.push(self.vote(member.model(), task, policy.labels().len(), image));
            }
        }
    }

    fn vote(&self, name: &Arc<str>, task: &str, labels: usize, image: &RgbImage) -> Vote {
        let mut cost = Cost::default();
        let outcome = match self.models.get(name) {
            Some(seat) => contained(|| seat.logits(task, image, &mut cost)),
            None => Err(VoteFailure::new("the model is not loaded")),
        };
        let outcome = outcome.and_then(|logits| {
            Logits::new(logits, labels).map_err(|error| VoteFailure::new(error.to_string()))
        });
        Vote { model: Arc::clone(name), outcome, cost }
    }
}

impl Seat {
    fn load(
        name: &str,
        options: &ModelOptions,
        tasks: &BTreeMap<String, Policy>,
        base: &Path,
    ) -> Result<Self, ModelError> {
        let mut model = load_model(options, base)?;
        let stream = Stream::new(model.placement().device)?;
        {
            // What is prepared is read on this stream, and other streams do not wait for it.
            let _current = stream.enter()?;
            for (task, policy) in tasks.iter().filter(|(_, policy)| asks(policy, name)) {
                model.prepare(&task_labels(task, policy))?;
            }
        }
        let seat = Self { model, stream };
        seat.warm_up(tasks.iter().filter(|(_, policy)| asks(policy, name)))?;
        Ok(seat)
    }

    /// One picture for each task: libtorch chooses and prepares its kernels at the first run of a shape,
    /// which would otherwise be the first request's to wait for. It also shows that the model runs at all.
    fn warm_up<'a>(&self, tasks: impl Iterator<Item = (&'a String, &'a Policy)>) -> Result<(), ModelError> {
        let blank = RgbImage::new(WARM_UP_SIDE, WARM_UP_SIDE);
        for (task, policy) in tasks {
            let logits = self.logits(task, &blank, &mut Cost::default())?;
            Logits::new(logits, policy.labels().len())
                .map_err(|error| ModelError::Task { task: task.clone(), message: error.to_string() })?;
        }
        Ok(())
    }

    fn logits(&self, task: &str, image: &RgbImage, cost: &mut Cost) -> Result<Vec<f32>, ModelError> {
        let start = Instant::now();
        let pixels = self.model.preprocessor().apply(image)?;
        cost.preprocess = start.elapsed();
        let _current = self.stream.enter()?;
        let start = Instant::now();
        let logits = self.model.classify(task, &[&pixels]);
        cost.model = start.elapsed();
        Ok(logits?.pop().unwrap_or_default())
    }
}

/// Any size will do: preprocessing brings it to the model's.
const WARM_UP_SIDE: u32 = 256;

fn asks(policy: &Policy, model: &str) -> bool {
    policy.members().any(|member| member.model().as_ref() == model)
}

/// libtorch's exceptions arrive as panics; one of them costs a vote, not the process.
fn contained<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, VoteFailure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(outcome) => outcome.map_err(|error| VoteFailure::new(error.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(VoteFailure::new(format!("the model panicked: {}", text.lines().next().unwrap_or_default())))
        }
    }
}

fn task_labels(task: &str, policy: &Policy) -> TaskLabels {
    let labels = policy.labels().iter().cloned().zip(policy.prompts().iter().cloned()).collect();
    TaskLabels { task: task.to_owned(), labels }
}
