//! What the endpoint tells about itself.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use concord_actors::policy::{AcceptRule, Probability, Stage, Temperature};
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::Authorized;
use super::respond::Refusal;
use super::worker::Worker;
use crate::problem::{Problem, ProblemKind};

/// A task as it is answered now.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskPage {
    /// Its name.
    task: String,
    /// The question about an image.
    question: String,
    /// The possible answers.
    labels: Vec<String>,
    /// How votes are fused.
    fusion: &'static str,
    /// The stages, in the order in which they are asked.
    stages: Vec<StagePage>,
}

/// A stage of a task.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StagePage {
    /// The models that are asked together.
    models: Vec<MemberPage>,
    /// The least confidence with which the cascade stops here.
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    /// How likely the answer must be right, by the learned gate, where that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<f64>,
    /// Whether all votes so far must name the same label as well.
    agreement: bool,
    /// The share of the answer, more than which one of its models must have to be worth asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_weight: Option<f64>,
}

/// A model's part in a task.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemberPage {
    /// Its name.
    model: String,
    /// Whether there is no answer without its vote.
    required: bool,
    /// How much its vote counts beside the others.
    weight: f64,
    /// What its logits are divided by, unless it has scales and biases.
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f64>,
    /// What is done with each label's log-probability in place of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    scaling: Option<ScalingPage>,
}

/// Vector scaling: a number for each label, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScalingPage {
    /// What its log-probability is multiplied by.
    scale: Vec<f64>,
    /// What is added then.
    bias: Vec<f64>,
}

/// A running model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelPage {
    /// Its name.
    model: String,
    /// Which implementation runs it.
    architecture: String,
    /// Where it computes: the devices of its replicas, with commas between them.
    device: String,
    /// Its copies, each with a queue of its own.
    replicas: Vec<ReplicaPage>,
    /// What each copy was estimated to take of its device before it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    estimated_bytes: Option<MemoryPage>,
    /// The number format.
    dtype: &'static str,
    /// How many parameters it has.
    parameters: i64,
    /// The tasks that ask it.
    tasks: Vec<String>,
    /// The BLAKE3 digest of its snapshot.
    digest: String,
}

/// A copy of a model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReplicaPage {
    /// Its number, as metrics and traces call it.
    replica: usize,
    /// Where it computes.
    device: String,
}

/// An estimate of memory, in bytes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MemoryPage {
    /// Of the parameters in the number format.
    parameters: u64,
    /// A reserve for batches of `max_batch` images.
    activations: u64,
}

/// Whether requests are answered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusPage {
    /// `ok`, `ready`, `loading`, `warming up`, `draining` or `failed`.
    status: &'static str,
    /// Why, where it failed; how far it is, where it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// The tasks and their policies, as they are answered now.
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
    let member = |member: &concord_actors::policy::Member| MemberPage {
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
        gate: stage.accept().and_then(AcceptRule::gate).map(Probability::get),
        agreement: stage.accept().is_some_and(AcceptRule::needs_agreement),
        min_weight: stage.min_weight().map(Probability::get),
    }
}

/// The running models.
#[utoipa::path(get, path = "/v1/models", tag = "models", responses((status = 200, body = Vec<ModelPage>)))]
pub(super) async fn models(_authorized: Authorized, worker: Data<Worker>) -> HttpResponse {
    let plan = worker.engine.plan();
    let asks = |task: &concord_actors::TaskPlan, model: &str| {
        task.policy().members().any(|member| &**member.model() == model)
    };
    let page = |model: concord_actors::ModelInfo| ModelPage {
        tasks: plan
            .tasks()
            .filter(|task| asks(task, &model.name))
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

/// Whether the process is alive; what it says does not depend on its models.
#[utoipa::path(get, path = "/healthz", tag = "operations", responses((status = 200, body = StatusPage)))]
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(StatusPage { status: "ok", detail: None })
}

/// Whether requests are answered: after the models have been loaded and warmed up, until the process is told to end.
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

/// What is counted, for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "operations", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(request: HttpRequest, worker: Data<Worker>) -> Result<HttpResponse, Refusal> {
    let text = worker.engine.metrics().text().map_err(|error| {
        Refusal::of(&request, Problem::new(ProblemKind::Internal, format!("metrics: {error}")))
    })?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(text))
}

pub(super) async fn not_found(request: HttpRequest) -> HttpResponse {
    let detail = format!("nothing is served at {}: /openapi.json lists what is", request.path());
    Refusal::of(&request, Problem::new(ProblemKind::NotFound, detail)).respond()
}

pub(super) async fn method_not_allowed(request: HttpRequest) -> HttpResponse {
    let detail =
        format!("{} is not served by {}: /openapi.json says by what", request.path(), request.method());
    Refusal::of(&request, Problem::new(ProblemKind::MethodNotAllowed, detail)).respond()
}
