//! Why an answer is what it is, in the words of a model that can be asked. It is written after the answer has been
//! given, changes nothing of it, and is not kept.

use std::time::{Duration, Instant};

use bytes::Bytes;
use concord_models::GenerateRequest;
use tokio::time::timeout_at;

use super::write::{Write, start};
use super::{Classify, Routed, Shared};
use crate::Trace;
use crate::model::TextEvent;

/// A sentence or two.
const NEW_TOKENS: usize = 48;
/// What is left of a request's time for the answer without an explanation.
const MARGIN: Duration = Duration::from_millis(20);

/// What a model says about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The model's name, where there is one that can be asked.
    pub model: Option<String>,
    /// What it wrote, or why there is nothing.
    pub text: Result<String, String>,
}

/// What an explanation needs of the request.
pub(super) struct Wish {
    image: Bytes,
    deadline: Instant,
    trace: Trace,
}

impl Wish {
    pub(super) fn of(request: &Classify) -> Self {
        let (image, trace) = (request.image.clone(), request.trace.clone());
        Self { image, deadline: request.deadline, trace }
    }
}

/// Asks the last model of the task that takes questions: the later the stage, the abler the model.
pub(super) async fn explain(shared: &Shared, routed: &Routed, wish: Wish) -> Explanation {
    let able = routed.task.seats().iter().rev().find(|seat| seat.voter.explains());
    let Some(seat) = able else {
        let text = Err("no model of this task takes questions in words".to_owned());
        return Explanation { model: None, text };
    };
    let policy = routed.task.policy();
    let (question, answer) = (policy.question(), &policy.answers()[routed.answer.label()]);
    let prompt =
        format!("{question} The answer is {answer}. Explain in one sentence what in the image shows that.");
    let model = seat.voter.name().to_string();
    let write = Write {
        model: model.clone(),
        image: wish.image,
        request: GenerateRequest { prompt, max_new_tokens: NEW_TOKENS },
        deadline: wish.deadline,
        trace: wish.trace,
    };
    let until = wish.deadline.checked_sub(MARGIN).unwrap_or(wish.deadline);
    let text = timeout_at(until.into(), whole(shared, write)).await;
    Explanation {
        model: Some(model),
        text: text.unwrap_or_else(|_| Err("it was not written in time".to_owned())),
    }
}

async fn whole(shared: &Shared, write: Write) -> Result<String, String> {
    let mut writing = start(shared, write).await.map_err(|error| error.to_string())?;
    while let Some(event) = writing.next().await {
        if let TextEvent::Done(outcome) = event {
            return outcome.map(|written| written.generated.text).map_err(|failure| failure.to_string());
        }
    }
    Err("it has no end".to_owned())
}
