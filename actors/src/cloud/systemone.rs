//! `/v1/systemone` of transformers (5.23 and later, `cli/serving/systemone.py`): a probability for each
//! allowed answer.

use std::collections::BTreeMap;

use concord_models::TaskSpec;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{RemoteAnswer, Unreadable, Usage, logits_of};

/// The name of the one question.
const QUESTION: &str = "task";
/// The reference to the image.
const IMAGE: &str = "<image-1>";

/// Returns the body of a request; `image` is JPEG in base64.
pub(super) fn request(model: &str, task: &TaskSpec, image: &str) -> Value {
    let criteria: Map<String, Value> =
        task.answers.iter().map(|answer| (answer.clone(), Value::Null)).collect();
    let question = json!({ "type": "choice", "instructions": task.question, "criteria": criteria });
    json!({
        "model": model,
        "state": IMAGE,
        "questions": { QUESTION: question },
        "assets": { IMAGE: { "type": "image", "format": "jpeg", "data_base64": image } },
    })
}

#[derive(Deserialize)]
struct Response {
    answers: BTreeMap<String, Choice>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Choice {
    probabilities: BTreeMap<String, f64>,
}

/// Reads the body of an answer.
pub(super) fn read(body: &[u8], task: &TaskSpec) -> Result<RemoteAnswer, Unreadable> {
    let response: Response = serde_json::from_slice(body)
        .map_err(|error| Unreadable::Other(format!("not a typed decision: {error}"), Usage::default()))?;
    let other = |message: String| Unreadable::Other(message, response.usage);
    let choice =
        response.answers.get(QUESTION).ok_or_else(|| other("the question is not answered".to_owned()))?;
    let probability = |answer: &String| {
        let probability = choice.probabilities.get(answer).copied();
        let probability = probability.filter(|probability| (0.0..=1.0).contains(probability));
        probability.ok_or_else(|| other(format!("it has no probability of {answer:?}")))
    };
    let probabilities: Vec<f64> = task.answers.iter().map(probability).collect::<Result<_, _>>()?;
    if probabilities.iter().sum::<f64>() <= 0.0 {
        return Err(other("no answer has any probability".to_owned()));
    }
    Ok(RemoteAnswer { logits: logits_of(&probabilities), usage: response.usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_has_its_probability_or_there_is_no_vote() {
        let task = TaskSpec {
            task: "t".to_owned(),
            question: "Is it?".to_owned(),
            labels: Vec::new(),
            answers: vec!["NO".to_owned(), "YES".to_owned()],
            head: None,
        };
        let body = br#"{"answers": {"task": {"type": "choice", "choice": "YES", "confidence": 0.7,
            "probabilities": {"NO": 0.3, "YES": 0.7}}}, "usage": {"input_tokens": 40, "output_tokens": 0}}"#;
        let answer = read(body, &task).unwrap();
        assert!((answer.logits[1].exp() - 0.7).abs() < 1e-6);
        assert_eq!(answer.usage.input_tokens, 40);
        for wrong in [
            &br#"{"answers": {}}"#[..],
            br#"{"answers": {"task": {"probabilities": {"YES": 1.0}}}}"#,
            br#"{"answers": {"task": {"probabilities": {"YES": 2.0, "NO": 0.0}}}}"#,
            br#"{"answers": {"task": {"probabilities": {"YES": 0.0, "NO": 0.0}}}}"#,
            b"<html>",
        ] {
            assert!(read(wrong, &task).is_err());
        }
    }
}
