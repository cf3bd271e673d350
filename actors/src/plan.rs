//! What requests are answered by: each task's policy, the models that it asks, made ready for it, and the keys of
//! what they say. Replaced as a whole, between requests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concord_models::presets::snapshot_folder;
use concord_models::{ModelOptions, TaskId, TaskSpec, head_digest, head_snapshot};

use crate::cloud::CloudHandle;
use crate::digest::{Digest, cloud_digest, verdict_digest, vote_digest};
use crate::engine::LoadError;
use crate::model::ModelHandle;
use crate::voter::Voter;
use concord_policy::{Policy, VoteFailure};

/// Every task.
#[derive(Debug, Default)]
pub struct Plan {
    tasks: BTreeMap<String, Arc<TaskPlan>>,
}

/// One task.
#[derive(Debug)]
pub struct TaskPlan {
    name: String,
    policy: Policy,
    /// The models, in the order of the policy's members.
    seats: Vec<PlannedModel>,
    /// What its verdicts depend on.
    digest: Digest,
}

/// Every model that can be asked.
#[derive(Debug, Default)]
pub(crate) struct RunningModels {
    pub(crate) models: BTreeMap<Arc<str>, ModelHandle>,
    pub(crate) clouds: BTreeMap<Arc<str>, CloudHandle>,
    /// Those that are configured and cannot be asked, because their key is not there.
    pub(crate) off: BTreeSet<String>,
}

/// A model made ready for a task.
#[derive(Debug)]
pub(crate) struct PlannedModel {
    pub(crate) voter: Voter,
    /// What its votes depend on.
    digest: Digest,
}

impl Plan {
    /// The task of that name.
    pub fn task(&self, name: &str) -> Option<&Arc<TaskPlan>> {
        self.tasks.get(name)
    }

    /// Every task, by name.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskPlan> {
        self.tasks.values().map(AsRef::as_ref)
    }

    /// A task that the model of that name has been made ready for.
    pub(crate) fn prepared_in(&self, model: &str) -> Option<TaskId> {
        let seats = self.tasks.values().flat_map(|task| &task.seats);
        seats.filter(|seat| **seat.voter.name() == *model).find_map(|seat| match &seat.voter {
            Voter::Local { prepared, .. } => Some(prepared.id),
            Voter::Cloud { .. } => None,
        })
    }

    /// Makes the models ready for `tasks`. What is the same as in `current` is taken over as it is.
    ///
    /// # Errors
    /// When a model cannot answer a task that asks it: all of those.
    pub(crate) fn prepare(
        tasks: &BTreeMap<String, Policy>,
        running: &RunningModels,
        heads: &BTreeMap<String, ModelOptions>,
        base: &Path,
        current: &Self,
    ) -> Result<Self, LoadError> {
        let mut plan = Self::default();
        let mut failures = Vec::new();
        for (name, policy) in tasks {
            // A stage of models that are off would only say so in every verdict.
            let Some(policy) = policy.without(|model| running.off.contains(model)) else {
                let failure = VoteFailure::new(format!("task {name} asks only models that are off"));
                failures.push((running.off.iter().cloned().collect::<Vec<_>>().join(", "), failure));
                continue;
            };
            let policy = &policy;
            let mut seats = Vec::new();
            for member in policy.members() {
                let preparation = Preparation { task: name, policy, base, current: current.task(name) };
                let name = member.model();
                let seat = match (running.models.get(name), running.clouds.get(name)) {
                    (Some(model), _) => preparation.seat(model, heads.get(&**name)),
                    (None, Some(cloud)) => Ok(preparation.cloud_seat(cloud)),
                    (None, None) => Err(VoteFailure::new("the model is not loaded")),
                };
                match seat {
                    Ok(seat) => seats.push(seat),
                    Err(failure) => failures.push((member.model().to_string(), failure)),
                }
            }
            let votes: Vec<Digest> = seats.iter().map(|seat| seat.digest).collect();
            let digest = verdict_digest(name, policy, &votes);
            let task = TaskPlan { name: name.clone(), policy: policy.clone(), seats, digest };
            plan.tasks.insert(name.clone(), Arc::new(task));
        }
        if failures.is_empty() { Ok(plan) } else { Err(LoadError { failures }) }
    }
}

impl TaskPlan {
    /// The task's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// By which it is decided.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What the votes of each model depend on, apart from the image; in the order of the policy's members.
    pub fn vote_digests(&self) -> impl Iterator<Item = Digest> {
        self.seats.iter().map(|seat| seat.digest)
    }

    /// The key of the verdict on the image of this digest.
    pub(crate) fn verdict_key(&self, image: &Digest) -> Digest {
        self.digest.for_image(image)
    }

    /// The keys of the votes on it, in the order of the policy's members.
    pub(crate) fn vote_keys(&self, image: &Digest) -> Vec<Digest> {
        self.seats.iter().map(|seat| seat.digest.for_image(image)).collect()
    }

    /// The models, in the order of the policy's members.
    pub(crate) fn seats(&self) -> &[PlannedModel] {
        &self.seats
    }
}

/// One task to be made ready in its models.
struct Preparation<'a> {
    task: &'a str,
    policy: &'a Policy,
    base: &'a Path,
    current: Option<&'a Arc<TaskPlan>>,
}

impl Preparation<'_> {
    /// `options` are those of the configuration to come; of them only the head counts, the rest is as it was started.
    fn seat(&self, model: &ModelHandle, options: Option<&ModelOptions>) -> Result<PlannedModel, VoteFailure> {
        let head: Option<PathBuf> = options.and_then(|options| options.head(self.task));
        let snapshot = &model.options.snapshot;
        let head_digest = head
            .as_ref()
            .map(|head| head_digest(&snapshot_folder(self.base, snapshot)?, head))
            .transpose()
            .map_err(|error| VoteFailure::new(error.to_string()))?;
        let digest = vote_digest(&model.options, &model.snapshot, head_digest.as_ref(), self.policy);
        let same = self.current.and_then(|task| {
            task.seats.iter().find(|seat| seat.digest == digest && seat.voter.name() == model.name())
        });
        let voter = match same {
            Some(seat) => seat.voter.clone(),
            None => {
                if let Some(head) = &head {
                    self.warn_of_another_snapshot(model, head);
                }
                Voter::Local { model: model.clone(), prepared: model.prepare(&self.labels(head))? }
            }
        };
        Ok(PlannedModel { voter, digest })
    }

    /// A head fits every snapshot of its width, and says nonsense of the features of another than its own.
    fn warn_of_another_snapshot(&self, model: &ModelHandle, head: &Path) {
        let folder = snapshot_folder(self.base, &model.options.snapshot);
        // What cannot be read is told where it is loaded.
        let trained_on = folder.and_then(|folder| head_snapshot(&folder, head)).ok().flatten();
        if trained_on.is_some_and(|trained_on| trained_on != Digest::from(model.snapshot).to_string()) {
            let (task, head, model) = (self.task, head.display(), model.name());
            tracing::warn!(%model, task, %head, "a head was trained on another snapshot than its model has: train it again");
        }
    }

    fn cloud_seat(&self, cloud: &CloudHandle) -> PlannedModel {
        let voter = Voter::Cloud { cloud: cloud.clone(), task: Arc::new(self.labels(None)) };
        PlannedModel { voter, digest: cloud_digest(cloud.section(), self.policy) }
    }

    fn labels(&self, head: Option<PathBuf>) -> TaskSpec {
        task_labels(self.task, self.policy, head)
    }
}

/// A task as a model needs to know it, `head` being its file where the model has one for this task.
pub fn task_labels(task: &str, policy: &Policy, head: Option<PathBuf>) -> TaskSpec {
    let labels = policy.labels().iter().cloned().zip(policy.prompts().iter().cloned()).collect();
    TaskSpec {
        task: task.to_owned(),
        question: policy.question().to_owned(),
        labels,
        answers: policy.answers().to_vec(),
        head,
    }
}
