//! Why an answer is what it is, in the words of a model that can be asked. It is written after the answer has been
//! given, changes nothing of it, and is not kept.

use std::time::{Duration, Instant};

use bytes::Bytes;
use concord_models::GenerateRequest;
use tokio_util::sync::CancellationToken;

use super::admission::while_wanted;
use super::generate::{Generate, start};
use super::{Classify, Routed, Shared};
use crate::Trace;
use crate::model::{ModelHandle, TextEvent};

/// A sentence or two.
const NEW_TOKENS: usize = 48;
/// What is left of a request's time for the answer without an explanation.
const MARGIN: Duration = Duration::from_millis(20);

const NOT_ASKABLE: &str = "no model of this task takes questions in words";

/// What a model says about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The model's name, where there is one that can be asked.
    pub model: Option<String>,
    /// What it wrote, or why there is nothing.
    pub text: Result<String, String>,
}

/// What an explanation needs of the request.
pub(super) struct ExplainRequest {
    image: Bytes,
    deadline: Instant,
    trace: Trace,
    client_left: CancellationToken,
}

impl ExplainRequest {
    pub(super) fn of(request: &Classify) -> Self {
        Self {
            image: request.image.clone(),
            deadline: request.deadline,
            trace: request.trace.clone(),
            client_left: request.client_left.clone(),
        }
    }
}

/// Asks the last model of the task that takes questions: the later the stage, the abler the model.
pub(super) async fn explain(shared: &Shared, routed: &Routed, request: ExplainRequest) -> Explanation {
    let able = routed.task.seats().iter().rev().find(|seat| seat.voter.explains());
    let Some(seat) = able else {
        return Explanation { model: None, text: Err(NOT_ASKABLE.to_owned()) };
    };
    let policy = routed.task.policy();
    let (question, answer) = (policy.question(), &policy.answers()[routed.verdict.label()]);
    let prompt =
        format!("{question} The answer is {answer}. Explain in one sentence what in the image shows that.");
    let model = seat.voter.name().to_string();
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

/// Waits for the whole text. It is part of a request that has been admitted, so it takes no permit of its own.
async fn whole_text(shared: &Shared, model: &ModelHandle, request: Generate) -> Result<String, String> {
    let mut stream = start(shared, model, request).await.map_err(|error| error.to_string())?;
    while let Some(event) = stream.next().await {
        if let TextEvent::Done(outcome) = event {
            return outcome.map(|output| output.generated.text).map_err(|failure| failure.to_string());
        }
    }
    Err("the text ended without an end".to_owned())
}
