//! The explanation of an answer, by a model that takes questions. It is written after the answer has been
//! decided, changes nothing of it, and is not cached.

use std::time::{Duration, Instant};

use bytes::Bytes;
use concord_models::GenerateRequest;
use tokio_util::sync::CancellationToken;

use super::admission::while_wanted;
use super::generate::start;
use super::messages::{Classify, Explanation, Generate, Routed};
use super::shared::Shared;
use crate::Trace;
use crate::deadline::SharedDeadline;
use crate::model::{ModelHandle, TextEvent};

/// Enough for a sentence or two.
const NEW_TOKENS: usize = 48;
/// The part of a request's time that is kept for sending the answer without an explanation.
const MARGIN: Duration = Duration::from_millis(20);

const NOT_ASKABLE: &str = "no model of this task takes questions in words";

/// The parts of a request that its explanation needs.
pub(super) struct ExplainRequest {
    image: Bytes,
    deadline: Instant,
    trace: Trace,
    client_left: CancellationToken,
}

impl ExplainRequest {
    /// Clones them before the request is answered.
    pub(super) fn of(request: &Classify) -> Self {
        Self {
            image: request.image.clone(),
            deadline: request.deadline,
            trace: request.trace.clone(),
            client_left: request.client_left.clone(),
        }
    }
}

/// Has the last model of the task that takes questions explain the answer: the later the stage, the abler the
/// model.
pub(super) async fn explain(shared: &Shared, routed: &Routed, request: ExplainRequest) -> Explanation {
    let able = routed.task.members().iter().rev().find(|member| member.client.explains());
    let Some(member) = able else {
        return Explanation { model: None, text: Err(NOT_ASKABLE.to_owned()) };
    };
    let policy = routed.task.policy();
    let question = policy.question();
    let answer = policy.answers().get(routed.verdict.label()).map_or("", String::as_str);
    let prompt =
        format!("{question} The answer is {answer}. Explain in one sentence what in the image shows that.");
    let model = member.client.name().to_string();
    let Some(generator) = shared.running.get().and_then(|running| running.models.get(model.as_str())) else {
        return Explanation { model: None, text: Err(NOT_ASKABLE.to_owned()) };
    };
    let ExplainRequest { image, deadline, trace, client_left } = request;
    let generate = Generate {
        model: model.clone(),
        image,
        request: GenerateRequest { prompt, max_new_tokens: NEW_TOKENS },
        deadline,
        trace,
        client_left: client_left.clone(),
    };
    let until = deadline.checked_sub(MARGIN).unwrap_or(deadline);
    let text = while_wanted(until, &client_left, whole_text(shared, generator, generate)).await;
    let text = text.unwrap_or_else(|_| Err("the explanation was not written in time".to_owned()));
    Explanation { model: Some(model), text }
}

/// Waits for the whole text. It is part of a request that has been admitted, so it takes no permit of its
/// own.
async fn whole_text(shared: &Shared, model: &ModelHandle, request: Generate) -> Result<String, String> {
    let interest = SharedDeadline::new(request.deadline);
    let mut stream = start(shared, model, request, interest).await.map_err(|error| error.to_string())?;
    while let Some(event) = stream.next().await {
        if let TextEvent::Done(outcome) = event {
            return outcome.map(|output| output.generated.text).map_err(|failure| failure.to_string());
        }
    }
    Err("the text ended without an end".to_owned())
}
