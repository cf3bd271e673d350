//! Chat completions, the protocol of OpenAI, vLLM and SGLang: a question with an image, and the probabilities
//! of the first token of the answer; where the server gives none, an answer in JSON.

use concord_models::TaskSpec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{NoVote, logits_of, one_of};
use super::first_token::{self, Position};

/// The form in which the answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One word, whose token probabilities are read.
    FirstToken,
    /// `{"answer": …, "confidence": …}`.
    Json,
}

/// The most candidates that vLLM and OpenAI return.
const TOP_LOGPROBS: usize = 20;
/// Enough for the longest label in JSON.
const JSON_TOKENS_MAX: u32 = 128;
/// Few, because a reasoning model that thinks aloud would have to be paid for.
const FIRST_TOKENS_MAX: u32 = 8;

impl Form {
    /// Returns the most tokens that an answer of this form may have.
    pub(super) fn tokens_max(self) -> u32 {
        match self {
            Self::FirstToken => FIRST_TOKENS_MAX,
            Self::Json => JSON_TOKENS_MAX,
        }
    }
}

/// Returns the body of a request; `image` is a data URL.
pub(super) fn request(model: &str, task: &TaskSpec, image: &str, form: Form) -> Value {
    let answers = task.answers.join(", ");
    let instruction = match form {
        Form::FirstToken => format!("{} Answer with exactly one of: {answers}.", task.question),
        Form::Json => format!(
            "{} Answer with a JSON object and nothing else: {{\"answer\": one of [{}], \"confidence\": a number \
             from 0 to 1, how probable that answer is}}.",
            task.question,
            task.answers.iter().map(|answer| format!("{answer:?}")).collect::<Vec<_>>().join(", ")
        ),
    };
    let mut body = json!({
        "model": model,
        "temperature": 0,
        "max_tokens": form.tokens_max(),
        "messages": [{ "role": "user", "content": [
            { "type": "image_url", "image_url": { "url": image } },
            { "type": "text", "text": instruction },
        ] }],
    });
    if form == Form::FirstToken {
        body["logprobs"] = true.into();
        body["top_logprobs"] = TOP_LOGPROBS.into();
    }
    body
}

#[derive(Deserialize)]
struct Response {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    content: Option<Vec<Position>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    answer: String,
    confidence: f64,
}

/// Reads the body of an answer, and returns the logits of the labels.
pub(super) fn read(body: &[u8], task: &TaskSpec, form: Form) -> Result<Vec<f32>, NoVote> {
    let response: Response = serde_json::from_slice(body)
        .map_err(|error| NoVote::Unreadable(format!("not a chat completion: {error}")))?;
    let choice = response.choices.into_iter().next();
    let choice = choice.ok_or_else(|| NoVote::Unreadable("it has no choice".to_owned()))?;
    let text = choice.message.content.unwrap_or_default();
    match form {
        Form::FirstToken => {
            let positions = choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default();
            by_tokens(&positions, &text, &task.answers)
        }
        Form::Json => by_words(&text, &task.answers),
    }
}

fn by_tokens(positions: &[Position], text: &str, answers: &[String]) -> Result<Vec<f32>, NoVote> {
    if let Some(probabilities) = first_token::probabilities(positions, text, answers) {
        return Ok(logits_of(&probabilities));
    }
    // A model that says nothing, as one that refuses, has no tokens to give probabilities of.
    let gives_some = text.trim().is_empty() || positions.iter().any(Position::has_probabilities);
    Err(if gives_some { NoVote::Undecided } else { NoVote::NoProbabilities })
}

fn by_words(text: &str, answers: &[String]) -> Result<Vec<f32>, NoVote> {
    let declined = |reason: &str| NoVote::Declined(reason.to_owned());
    let json: Json = serde_json::from_str(text.trim()).map_err(|_| declined("not the JSON asked for"))?;
    let is_it = |answer: &String| answer.eq_ignore_ascii_case(json.answer.trim());
    let index = answers.iter().position(is_it).ok_or_else(|| declined("not one of the answers"))?;
    // An answer that is less probable than a guess contradicts itself: "NO" with 0 is not a certain "YES".
    let guess = 1.0 / answers.len() as f64;
    if !(guess..=1.0).contains(&json.confidence) {
        return Err(NoVote::Declined(format!("its confidence is not from {guess:.3} to 1")));
    }
    Ok(one_of(answers.len(), index, json.confidence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(answers: &[&str]) -> TaskSpec {
        TaskSpec {
            task: "t".to_owned(),
            question: "Is it?".to_owned(),
            labels: answers.iter().map(|answer| ((*answer).to_owned(), Vec::new())).collect(),
            answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
            head: None,
        }
    }

    fn yes_no(body: &Value, form: Form) -> Result<Vec<f32>, NoVote> {
        read(body.to_string().as_bytes(), &task(&["NO", "YES"]), form)
    }

    fn by_tokens(content: &Value, positions: &Value) -> Result<Vec<f32>, NoVote> {
        let choice = json!({ "message": { "content": content }, "logprobs": { "content": positions } });
        yes_no(&json!({ "choices": [choice] }), Form::FirstToken)
    }

    #[test]
    fn the_first_token_gives_the_logits_however_sure_the_model_is() {
        let yes = |logprob: f64, top: &Value| {
            by_tokens(&"YES".into(), &json!([{ "token": "YES", "logprob": logprob, "top_logprobs": top }]))
        };
        let no = |logprob: f64| json!([{ "token": "NO", "logprob": logprob }]);
        for (outcome, expected) in [
            (yes(0.9_f64.ln(), &no(0.1_f64.ln())), 0.9),
            (yes(0.9_f64.ln(), &Value::Null), 0.9),
            // vLLM writes -9999 for what cannot be.
            (yes(0.0, &no(-9999.0)), 1.0),
            (yes(0.0, &json!([{ "token": "NO", "logprob": null }])), 1.0),
        ] {
            let logits = outcome.unwrap();
            assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
            assert!((f64::from(logits[1]).exp() - expected).abs() < 1e-6, "{logits:?}");
            assert!(logits[0] < logits[1], "{logits:?}");
        }
    }

    #[test]
    fn one_answer_that_says_nothing_does_not_mean_that_the_server_gives_no_probabilities() {
        let the = json!([{ "token": "The", "logprob": -0.01, "top_logprobs": null }]);
        let without = json!([{ "token": "YES", "logprob": null, "top_logprobs": null }]);
        for (content, positions, expected) in [
            ("The".into(), the, NoVote::Undecided),
            (Value::Null, Value::Null, NoVote::Undecided),
            ("".into(), json!([]), NoVote::Undecided),
            ("YES".into(), Value::Null, NoVote::NoProbabilities),
            ("YES".into(), json!([]), NoVote::NoProbabilities),
            ("YES".into(), without, NoVote::NoProbabilities),
        ] {
            assert_eq!(by_tokens(&content, &positions), Err(expected), "{content}: {positions}");
        }
        for logprobs in [json!({}), json!({ "logprobs": null })] {
            let mut choice = json!({ "message": { "content": "YES" } });
            choice.as_object_mut().unwrap().extend(logprobs.as_object().unwrap().clone());
            let body = json!({ "choices": [choice], "usage": null });
            assert_eq!(yes_no(&body, Form::FirstToken), Err(NoVote::NoProbabilities), "{body}");
        }
    }

    #[test]
    fn json_is_read_strictly() {
        let read = |content: &Value| {
            yes_no(&json!({ "choices": [{ "message": { "content": content } }] }), Form::Json)
        };
        let logits = read(&r#"{"answer": "yes", "confidence": 0.9}"#.into()).unwrap();
        assert!((logits[1].exp() - 0.9).abs() < 1e-6 && (logits[0].exp() - 0.1).abs() < 1e-6);
        let logits = read(&r#"{"answer": "YES", "confidence": 1}"#.into()).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()), "{logits:?}");
        for wrong in [
            Value::Null,
            "".into(),
            "I'm sorry, I can't tell.".into(),
            "YES".into(),
            r#"{"answer": "YES"}"#.into(),
            r#"{"answer": "PERHAPS", "confidence": 0.5}"#.into(),
            r#"{"answer": null, "confidence": 0.5}"#.into(),
            r#"{"answer": "YES", "confidence": 1.5}"#.into(),
            r#"{"answer": "NO", "confidence": 0}"#.into(),
            r#"{"answer": "YES", "confidence": 0.5, "why": "cones"}"#.into(),
            "```json\n{\"answer\": \"YES\", \"confidence\": 0.5}\n```".into(),
        ] {
            assert!(matches!(read(&wrong), Err(NoVote::Declined(_))), "{wrong}");
        }
    }

    #[test]
    fn a_body_that_is_no_chat_completion_is_unreadable() {
        for body in
            [json!("<html>"), json!({}), json!({ "error": {} }), json!({ "choices": [] }), json!(null)]
        {
            for form in [Form::FirstToken, Form::Json] {
                assert!(matches!(yes_no(&body, form), Err(NoVote::Unreadable(_))), "{body}");
            }
        }
    }
}
