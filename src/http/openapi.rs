//! `GET /openapi.json`: the description of the endpoint for programs.

use actix_web::HttpResponse;
use utoipa::OpenApi;

use super::respond::ProblemBody;
use super::{body, classify, generate, pages};
use crate::problem::ProblemKind;
use crate::response::ClassifyResponse;

#[derive(OpenApi)]
#[openapi(
    info(title = "Concord", description = "Answers questions about images with a cascade of vision models."),
    paths(
        classify::classify,
        generate::generate,
        pages::tasks,
        pages::models,
        pages::healthz,
        pages::readyz,
        pages::metrics,
        page
    ),
    components(schemas(ClassifyResponse, ProblemBody<'static>, ProblemKind, body::ImageRequest))
)]
struct Description;

/// Returns this description.
#[utoipa::path(get, path = "/openapi.json", tag = "operations", responses((status = 200, body = String, content_type = "application/json")))]
pub(super) async fn page() -> HttpResponse {
    HttpResponse::Ok().json(Description::openapi())
}
