//! Chat completions, the protocol of OpenAI, vLLM and SGLang: a question with an image, and the probabilities
//! of the first token of the answer; where the server gives none, an answer in JSON.

use concord_models::TaskSpec;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{RemoteAnswer, Unreadable, Usage, one_of};

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
const JSON_TOKENS_MAX: usize = 128;
/// Few, because a reasoning model that thinks aloud would have to be paid for.
const FIRST_TOKENS_MAX: usize = 8;

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
        "messages": [{ "role": "user", "content": [
            { "type": "image_url", "image_url": { "url": image } },
            { "type": "text", "text": instruction },
        ] }],
    });
    let more = match form {
        Form::FirstToken => {
            json!({ "max_tokens": FIRST_TOKENS_MAX, "logprobs": true, "top_logprobs": TOP_LOGPROBS })
        }
        Form::Json => json!({ "max_tokens": JSON_TOKENS_MAX }),
    };
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    body
}

#[derive(Deserialize)]
struct Response {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    #[serde(default)]
    logprobs: Option<Logprobs>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    #[serde(default)]
    content: Option<Vec<Position>>,
}

#[derive(Deserialize)]
struct Position {
    token: String,
    logprob: f64,
    #[serde(default)]
    top_logprobs: Vec<Candidate>,
}

#[derive(Deserialize)]
struct Candidate {
    token: String,
    logprob: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    answer: String,
    confidence: f64,
}

/// Reads the body of an answer.
pub(super) fn read(body: &[u8], task: &TaskSpec, form: Form) -> Result<RemoteAnswer, Unreadable> {
    let response: Response = serde_json::from_slice(body)
        .map_err(|error| Unreadable::Other(format!("not a chat completion: {error}"), Usage::default()))?;
    let usage = response.usage;
    let other = |message: &str| Unreadable::Other(message.to_owned(), usage);
    let choice = response.choices.into_iter().next().ok_or_else(|| other("it has no choice"))?;
    let logits = match form {
        Form::FirstToken => {
            let position = choice.logprobs.and_then(|logprobs| {
                logprobs.content?.into_iter().find(|position| {
                    // A tokenizer may begin with a space of its own.
                    !position.token.trim().is_empty()
                })
            });
            let position = position.ok_or(Unreadable::NoProbabilities(usage))?;
            first_token(position, &task.answers).ok_or(Unreadable::NoProbabilities(usage))?
        }
        Form::Json => {
            let text = choice.message.content.unwrap_or_default();
            let json: Json =
                serde_json::from_str(text.trim()).map_err(|_| other("not the JSON asked for"))?;
            let is_it = |answer: &String| answer.eq_ignore_ascii_case(json.answer.trim());
            let index = task.answers.iter().position(is_it).ok_or_else(|| other("not one of the answers"))?;
            if !(0.0..=1.0).contains(&json.confidence) {
                return Err(other("its confidence is not from 0 to 1"));
            }
            one_of(task.answers.len(), index, json.confidence)
        }
    };
    Ok(RemoteAnswer { logits, usage })
}

/// Returns logits by the probabilities of the answer's first token. An answer that is not among the listed
/// tokens is at most as probable as the least of them. `None` where no listed token begins exactly one
/// answer, or the most probable of them begins several.
fn first_token(position: Position, answers: &[String]) -> Option<Vec<f32>> {
    let mut candidates = position.top_logprobs;
    if !candidates.iter().any(|candidate| candidate.token == position.token) {
        candidates.push(Candidate { token: position.token, logprob: position.logprob });
    }
    candidates.retain(|candidate| candidate.logprob.is_finite() && candidate.logprob <= 0.01);
    let least = candidates.iter().map(|candidate| candidate.logprob).fold(f64::INFINITY, f64::min);
    let mut masses = vec![0.0; answers.len()];
    let mut ambiguous = 0.0_f64;
    for candidate in &candidates {
        let mass = candidate.logprob.exp();
        match begun_by(&candidate.token, answers) {
            Begun::One(index) => masses[index] += mass,
            Begun::Several => ambiguous += mass,
            Begun::None => {}
        }
    }
    let most = masses.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 || ambiguous > most {
        return None;
    }
    let floor = least.exp().min(most);
    Some(masses.into_iter().map(|mass| if mass > 0.0 { mass } else { floor }.ln() as f32).collect())
}

/// The answers that a token begins.
enum Begun {
    None,
    One(usize),
    Several,
}

fn begun_by(token: &str, answers: &[String]) -> Begun {
    // Tokens as they are (" Yes"), or with the marks of byte-level vocabularies.
    let token = token.trim_start_matches(['Ġ', '▁']).trim().trim_end_matches('.').to_lowercase();
    if token.is_empty() {
        return Begun::None;
    }
    let lower = |answer: &String| answer.to_lowercase();
    if let Some(whole) = answers.iter().position(|answer| lower(answer) == token) {
        return Begun::One(whole);
    }
    let mut begun = answers.iter().enumerate().filter(|(_, answer)| lower(answer).starts_with(&token));
    match (begun.next(), begun.next()) {
        (Some((index, _)), None) => Begun::One(index),
        (Some(_), Some(_)) => Begun::Several,
        (None, _) => Begun::None,
    }
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

    fn completion(candidates: &[(&str, f64)]) -> Vec<u8> {
        let list: Vec<Value> =
            candidates.iter().map(|(token, p)| json!({ "token": token, "logprob": p.ln() })).collect();
        let content =
            json!([{ "token": candidates[0].0, "logprob": candidates[0].1.ln(), "top_logprobs": list }]);
        json!({ "choices": [{ "message": { "content": candidates[0].0 }, "logprobs": { "content": content } }],
            "usage": { "prompt_tokens": 100, "completion_tokens": 1 } })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn case_and_space_variants_of_an_answer_count_together() {
        let body = completion(&[
            ("YES", 0.5),
            (" Yes", 0.2),
            ("yes", 0.1),
            ("NO", 0.1),
            ("Ġno", 0.05),
            ("Maybe", 0.05),
        ]);
        let answer = read(&body, &task(&["NO", "YES"]), Form::FirstToken).unwrap();
        let p: Vec<f32> = answer.logits.iter().map(|logit| logit.exp()).collect();
        assert!((p[1] - 0.8).abs() < 1e-5 && (p[0] - 0.15).abs() < 1e-5, "{p:?}");
        assert_eq!(answer.usage, Usage { input_tokens: 100, output_tokens: 1 });
    }

    #[test]
    fn an_answer_that_is_not_listed_is_as_improbable_as_the_least_that_is() {
        let answer =
            read(&completion(&[("YES", 0.9), ("Yeah", 0.001)]), &task(&["NO", "YES"]), Form::FirstToken);
        assert!((answer.unwrap().logits[0].exp() - 0.001).abs() < 1e-6);
    }

    #[test]
    fn what_tells_nothing_apart_is_no_vote() {
        for (answers, candidates) in [
            (&["NO", "YES"][..], &[("The", 0.9), ("It", 0.1)][..]),
            (&["speed limit 20", "speed limit 30"][..], &[("speed", 0.99)][..]),
        ] {
            let outcome = read(&completion(candidates), &task(answers), Form::FirstToken);
            assert!(matches!(outcome, Err(Unreadable::NoProbabilities(_))), "{outcome:?}");
        }
        let without = br#"{"choices": [{"message": {"content": "YES"}}]}"#;
        assert!(matches!(
            read(without, &task(&["NO", "YES"]), Form::FirstToken),
            Err(Unreadable::NoProbabilities(_))
        ));
        assert!(matches!(read(b"<html>", &task(&["NO", "YES"]), Form::Json), Err(Unreadable::Other(..))));
    }

    #[test]
    fn json_is_read_strictly() {
        let read = |content: &str| {
            let body = json!({ "choices": [{ "message": { "content": content } }] }).to_string();
            read(body.as_bytes(), &task(&["NO", "YES"]), Form::Json)
        };
        let logits = read(r#"{"answer": "yes", "confidence": 0.9}"#).unwrap().logits;
        assert!((logits[1].exp() - 0.9).abs() < 1e-6 && (logits[0].exp() - 0.1).abs() < 1e-6);
        assert!(
            read(r#"{"answer": "YES", "confidence": 1}"#)
                .unwrap()
                .logits
                .iter()
                .all(|logit| logit.is_finite())
        );
        for wrong in [
            "YES",
            r#"{"answer": "YES"}"#,
            r#"{"answer": "PERHAPS", "confidence": 0.5}"#,
            r#"{"answer": "YES", "confidence": 1.5}"#,
            r#"{"answer": "YES", "confidence": 0.5, "why": "cones"}"#,
            "```json\n{\"answer\": \"YES\", \"confidence\": 0.5}\n```",
        ] {
            assert!(matches!(read(wrong), Err(Unreadable::Other(..))), "{wrong}");
        }
    }
}
