//! The pages about the server itself: its tasks, its models, its health and its metrics.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use concord_policy::{AcceptRule, Probability, Stage, Temperature};
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::Authorized;
use super::respond::Refusal;
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};

/// A task under its current policy.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskPage {
    /// The name of the task.
    task: String,
    /// The question about an image.
    question: String,
    /// The labels to choose from.
    labels: Vec<String>,
    /// The method by which votes are fused.
    fusion: &'static str,
    /// The stages, in the order in which they run.
    stages: Vec<StagePage>,
}

/// A stage of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StagePage {
    /// The models that run together.
    models: Vec<MemberPage>,
    /// The least confidence at which the cascade stops here.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    /// The least output of the learned correctness estimator at which the cascade stops here, where the
    /// correctness estimator can be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    correctness: Option<f64>,
    /// True if all votes so far must also have the same label.
    agreement: bool,
    /// The share of the verdict above which the learned weight of one of its models must be for the stage to
    /// run.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_weight: Option<f64>,
}

/// A model as a member of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemberPage {
    /// The name of the model.
    model: String,
    /// True if there is no verdict without the model's vote.
    required: bool,
    /// The weight of its vote, relative to the others.
    weight: f64,
    /// The temperature that its logits are divided by, unless it has scales and biases.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// The scales and biases that are applied instead of a temperature.
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<ScalingPage>,
}

/// Vector scaling: a scale and a bias for each label, in the order of the labels.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScalingPage {
    /// The factors of the log-probabilities.
    scale: Vec<f64>,
    /// The terms that are added after that.
    bias: Vec<f64>,
}

/// A running model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelPage {
    /// The name of the model.
    model: String,
    /// The architecture, which is the implementation that runs it.
    architecture: String,
    /// The devices of its replicas, separated by commas.
    device: String,
    /// The replicas, each with a queue of its own.
    replicas: Vec<ReplicaPage>,
    /// The memory that each replica was estimated to take on its device before it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_bytes: Option<MemoryPage>,
    /// The number format.
    dtype: &'static str,
    /// The number of parameters.
    parameters: i64,
    /// The tasks that it is a member of.
    tasks: Vec<String>,
    /// The BLAKE3 digest of its snapshot.
    digest: String,
}

/// A replica of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReplicaPage {
    /// The number of the replica in metrics and traces.
    replica: usize,
    /// The device that it runs on.
    device: String,
}

/// An estimate of memory, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemoryPage {
    /// The parameters in the number format.
    parameters: u64,
    /// The reserve for batches of `max_batch` images.
    activations: u64,
}

/// The status of the server.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusPage {
    /// `ok`, `ready`, `loading`, `warming up`, `draining` or `failed`.
    status: &'static str,
    /// The error if it failed, and the progress while it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// Returns the tasks with their current policies.
#[utoipa::path(get, path = "/v1/tasks", tag = "tasks", responses((status = 200, body = Vec<TaskPage>)))]
pub(super) async fn tasks(_authorized: Authorized, worker: Data<Worker>) -> HttpResponse {
    let plan = worker.engine.plan();
    let page = |task: &concord_actors::TaskPlan| {
        let policy = task.policy();
        TaskPage {
            task: task.name().to_owned(),
            question: policy.question().to_owned(),
            labels: policy.labels().to_vec(),
            fusion: policy.fusion().name(),
            stages: policy.stages().iter().map(stage_page).collect(),
        }
    };
    HttpResponse::Ok().json(plan.tasks().map(page).collect::<Vec<_>>())
}

fn stage_page(stage: &Stage) -> StagePage {
    let member = |member: &concord_policy::Member| MemberPage {
        model: member.model().to_string(),
        required: member.is_required(),
        weight: member.weight().get(),
        temperature: member.calibration().temperature().map(Temperature::get),
        scaling: member
            .calibration()
            .scaling()
            .map(|scaling| ScalingPage { scale: scaling.scale().to_vec(), bias: scaling.bias().to_vec() }),
    };
    StagePage {
        models: stage.members().iter().map(member).collect(),
        confidence: stage.accept().map(|rule| rule.confidence().get()),
        correctness: stage.accept().and_then(AcceptRule::correctness).map(Probability::get),
        agreement: stage.accept().is_some_and(AcceptRule::needs_agreement),
        min_weight: stage.min_weight().map(Probability::get),
    }
}

/// Returns the running models.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = Vec<ModelPage>)))]
pub(super) async fn models(_authorized: Authorized, worker: Data<Worker>) -> HttpResponse {
    let plan = worker.engine.plan();
    let has_member = |task: &concord_actors::TaskPlan, model: &str| {
        task.policy().members().any(|member| &**member.model() == model)
    };
    let page = |model: concord_actors::ModelInfo| ModelPage {
        tasks: plan
            .tasks()
            .filter(|task| has_member(task, &model.name))
            .map(|task| task.name().to_owned())
            .collect(),
        device: model.device(),
        replicas: (0..).zip(model.devices).map(|(replica, device)| ReplicaPage { replica, device }).collect(),
        estimated_bytes: model.memory.map(|memory| MemoryPage {
            parameters: memory.parameter_bytes,
            activations: memory.activation_bytes,
        }),
        architecture: model.options.architecture,
        dtype: model.dtype,
        parameters: model.parameters,
        digest: model.digest,
        model: model.name,
    };
    HttpResponse::Ok().json(worker.engine.models().into_iter().map(page).collect::<Vec<_>>())
}

/// Returns 200 while the process is alive, whatever the state of its models.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = StatusPage)))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(StatusPage { status: "ok", detail: None })
}

/// Returns 200 while requests are answered: once the models are loaded and warmed up, until the process shuts
/// down.
#[utoipa::path(get, path = "/readyz", tag = "operations",
    responses((status = 200, body = StatusPage), (status = 503, body = StatusPage)))]
pub(super) async fn readyz(worker: Data<Worker>) -> HttpResponse {
    let unready = |status, detail| HttpResponse::ServiceUnavailable().json(StatusPage { status, detail });
    if let Some(detail) = worker.engine.fatal().get() {
        unready("failed", Some(detail))
    } else if worker.draining.has_begun() {
        unready("draining", None)
    } else if worker.engine.is_ready() {
        HttpResponse::Ok().json(StatusPage { status: "ready", detail: None })
    } else {
        let startup = worker.engine.startup();
        unready(startup.phase, Some(startup.detail))
    }
}

/// Returns the metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(request: HttpRequest, worker: Data<Worker>) -> Result<HttpResponse, Refusal> {
    let text = worker.engine.metrics().text().map_err(|error| {
        Refusal::of(&request, Problem::new(ProblemKind::Internal, format!("metrics: {error}")))
    })?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(text))
}

pub(super) async fn not_found(request: HttpRequest) -> HttpResponse {
    let detail = format!("nothing is served at {}: see /openapi.json", request.path());
    Refusal::of(&request, Problem::new(ProblemKind::NotFound, detail)).respond()
}

pub(super) async fn method_not_allowed(request: HttpRequest) -> HttpResponse {
    let detail = format!("{} does not support {}: see /openapi.json", request.path(), request.method());
    Refusal::of(&request, Problem::new(ProblemKind::MethodNotAllowed, detail)).respond()
}
