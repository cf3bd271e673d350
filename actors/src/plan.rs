//! The plan that requests are answered by: each task's policy, the models that it asks, made ready for it,
//! and the keys of their votes. Replaced as a whole, between requests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use concord_models::presets::snapshot_folder;
use concord_models::{ModelOptions, TaskId, TaskSpec, head_digest, head_snapshot};
use concord_policy::{Policy, VoteFailure};

use crate::capacity::Capacities;
use crate::client::ModelClient;
use crate::cloud::CloudHandle;
use crate::digest::Digest;
use crate::keys::{cloud_digest, verdict_digest, vote_digest};
use crate::load_error::LoadError;
use crate::model::ModelHandle;

/// The plan for every task.
#[derive(Debug, Default)]
pub struct Plan {
    tasks: BTreeMap<String, Arc<TaskPlan>>,
}

/// The plan for one task.
#[derive(Debug)]
pub struct TaskPlan {
    name: String,
    policy: Policy,
    /// The models, in the order of the policy's members.
    members: Vec<PlannedModel>,
    /// The digest of everything that its verdicts depend on, apart from the image.
    digest: Digest,
    /// The capacities for its images; they outlive changes of its policy.
    pub(crate) capacities: Capacities,
}

/// Every model that can be asked.
#[derive(Debug, Default)]
pub(crate) struct RunningModels {
    pub(crate) models: BTreeMap<Arc<str>, ModelHandle>,
    pub(crate) clouds: BTreeMap<Arc<str>, CloudHandle>,
    /// The models that are configured but cannot be asked, because their API key is not set.
    pub(crate) off: BTreeSet<String>,
}

/// A model made ready for a task.
#[derive(Debug)]
pub(crate) struct PlannedModel {
    pub(crate) client: ModelClient,
    /// The digest of everything that its votes depend on, apart from the image.
    digest: Digest,
}

impl Plan {
    /// Returns the task of that name.
    pub fn task(&self, name: &str) -> Option<&Arc<TaskPlan>> {
        self.tasks.get(name)
    }

    /// Returns every task, by name.
    pub fn tasks(&self) -> impl Iterator<Item = &TaskPlan> {
        self.tasks.values().map(AsRef::as_ref)
    }

    /// Returns a task that the model of that name has been made ready for.
    pub(crate) fn prepared_in(&self, model: &str) -> Option<TaskId> {
        let members = self.tasks.values().flat_map(|task| &task.members);
        members.filter(|member| **member.client.name() == *model).find_map(|member| match &member.client {
            ModelClient::Local { prepared, .. } => Some(prepared.id),
            ModelClient::Cloud { .. } => None,
        })
    }

    /// Makes the models ready for `tasks`. Whatever is the same as in `current` is taken over.
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
            let mut members = Vec::new();
            for member in policy.members() {
                let preparation = Preparation { task: name, policy, base, current: current.task(name) };
                let name = member.model();
                let planned = match (running.models.get(name), running.clouds.get(name)) {
                    (Some(model), _) => preparation.local(model, heads.get(&**name)),
                    (None, Some(cloud)) => Ok(preparation.cloud(cloud)),
                    (None, None) => Err(VoteFailure::new("the model is not loaded")),
                };
                match planned {
                    Ok(planned) => members.push(planned),
                    Err(failure) => failures.push((member.model().to_string(), failure)),
                }
            }
            let votes: Vec<Digest> = members.iter().map(|member| member.digest).collect();
            let digest = verdict_digest(name, policy, &votes);
            let capacities = current.task(name).map_or_else(Capacities::new, |task| task.capacities.clone());
            let task = TaskPlan { name: name.clone(), policy: policy.clone(), members, digest, capacities };
            plan.tasks.insert(name.clone(), Arc::new(task));
        }
        if failures.is_empty() { Ok(plan) } else { Err(LoadError { failures }) }
    }
}

impl TaskPlan {
    /// Returns the task's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the policy that decides.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the digest of what each model's votes depend on, apart from the image; in the order of the
    /// policy's members.
    pub fn vote_digests(&self) -> impl Iterator<Item = Digest> {
        self.members.iter().map(|member| member.digest)
    }

    /// Returns the key of the verdict on the image of this digest.
    pub(crate) fn verdict_key(&self, image: &Digest) -> Digest {
        self.digest.for_image(image)
    }

    /// Returns the keys of the votes on it, in the order of the policy's members.
    pub(crate) fn vote_keys(&self, image: &Digest) -> Vec<Digest> {
        self.members.iter().map(|member| member.digest.for_image(image)).collect()
    }

    /// Returns the models, in the order of the policy's members.
    pub(crate) fn members(&self) -> &[PlannedModel] {
        &self.members
    }
}

/// The preparation of one task in its models.
struct Preparation<'a> {
    task: &'a str,
    policy: &'a Policy,
    base: &'a Path,
    current: Option<&'a Arc<TaskPlan>>,
}

impl Preparation<'_> {
    /// Plans a model on this machine. `options` are those of the configuration to come; of them only the head
    /// counts, the rest is as the model was started.
    fn local(
        &self,
        model: &ModelHandle,
        options: Option<&ModelOptions>,
    ) -> Result<PlannedModel, VoteFailure> {
        let head: Option<PathBuf> = options.and_then(|options| options.head(self.task));
        let snapshot = &model.options.snapshot;
        let head_digest = head
            .as_ref()
            .map(|head| head_digest(&snapshot_folder(self.base, snapshot)?, head))
            .transpose()
            .map_err(|error| VoteFailure::new(error.to_string()))?;
        let digest = vote_digest(&model.options, &model.snapshot, head_digest.as_ref(), self.policy);
        let same = self.current.and_then(|task| {
            task.members.iter().find(|member| member.digest == digest && member.client.name() == model.name())
        });
        let client = match same {
            Some(member) => member.client.clone(),
            None => {
                if let Some(head) = &head {
                    self.warn_of_another_snapshot(model, head);
                }
                ModelClient::Local { model: model.clone(), prepared: model.prepare(&self.labels(head))? }
            }
        };
        Ok(PlannedModel { client, digest })
    }

    /// Warns of a head that was trained on another snapshot: it fits every snapshot of its width, but its
    /// logits mean nothing for the features of another.
    fn warn_of_another_snapshot(&self, model: &ModelHandle, head: &Path) {
        let folder = snapshot_folder(self.base, &model.options.snapshot);
        // A head that cannot be read is reported where it is loaded.
        let trained_on = folder.and_then(|folder| head_snapshot(&folder, head)).ok().flatten();
        if trained_on.is_some_and(|trained_on| trained_on != Digest::from(model.snapshot).to_string()) {
            let (task, head, model) = (self.task, head.display(), model.name());
            tracing::warn!(%model, task, %head, "a head was trained on another snapshot than its model has: train it again");
        }
    }

    fn cloud(&self, cloud: &CloudHandle) -> PlannedModel {
        let client = ModelClient::Cloud { cloud: cloud.clone(), task: Arc::new(self.labels(None)) };
        PlannedModel { client, digest: cloud_digest(cloud.section(), self.policy) }
    }

    fn labels(&self, head: Option<PathBuf>) -> TaskSpec {
        task_labels(self.task, self.policy, head)
    }
}

/// Returns a task as a model needs to know it; `head` is the file of the model's head for this task, if it
/// has one.
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
