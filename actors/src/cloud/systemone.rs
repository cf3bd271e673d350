//! `/v1/systemone` of transformers (5.23 and later, `cli/serving/systemone.py`): a probability for each
//! allowed answer.

use std::collections::BTreeMap;

use concord_models::TaskSpec;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::answer::{ANSWERED_MIN, NoVote, SUM_MAX, logits_of};

/// The name of the one question.
const QUESTION: &str = "task";
/// The reference to the image.
const IMAGE: &str = "<image-1>";
/// The most tokens of an answer: it is one forward pass, and no text.
pub(super) const TOKENS_MAX: u32 = 1;

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
}

#[derive(Deserialize)]
struct Choice {
    probabilities: BTreeMap<String, f64>,
}

/// Reads the body of an answer, and returns the logits of the labels.
pub(super) fn read(body: &[u8], task: &TaskSpec) -> Result<Vec<f32>, NoVote> {
    let response: Response = serde_json::from_slice(body)
        .map_err(|error| NoVote::Unreadable(format!("not a typed decision: {error}")))?;
    let choice = response.answers.get(QUESTION);
    let choice = choice.ok_or_else(|| NoVote::Unreadable("the question is not answered".to_owned()))?;
    let probability = |answer: &String| {
        let probability = choice.probabilities.get(answer).copied();
        let probability = probability.filter(|probability| (0.0..=1.0).contains(probability));
        probability.ok_or_else(|| NoVote::Unreadable(format!("it has no probability of {answer:?}")))
    };
    let probabilities: Vec<f64> = task.answers.iter().map(probability).collect::<Result<_, _>>()?;
    let sum: f64 = probabilities.iter().sum();
    if sum > SUM_MAX {
        return Err(NoVote::Unreadable(format!("the probabilities of its answers sum to {sum:.2}")));
    }
    if sum < ANSWERED_MIN {
        return Err(NoVote::Declined(format!("all answers together have a probability of {sum:.2}")));
    }
    Ok(logits_of(&probabilities))
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
        let read = |probabilities: &str| {
            let body =
                format!(r#"{{"answers": {{"task": {{"probabilities": {probabilities}}}}}, "usage": null}}"#);
            read(body.as_bytes(), &task)
        };
        for (probabilities, yes) in [
            (r#"{"NO": 0.3, "YES": 0.7}"#, 0.7),
            (r#"{"NO": 0.0, "YES": 1.0}"#, 1.0),
            (r#"{"NO": 0.1, "YES": 0.5, "something else": 0.4}"#, 0.5),
        ] {
            let logits = read(probabilities).unwrap();
            assert!((logits[1].exp() - yes).abs() < 1e-6 && logits[0].is_finite(), "{logits:?}");
        }
        for declined in [r#"{"YES": 0.0, "NO": 0.0}"#, r#"{"YES": 0.02, "NO": 0.001}"#] {
            assert!(matches!(read(declined), Err(NoVote::Declined(_))), "{declined}");
        }
        for unreadable in
            [r#"{"YES": 1.0}"#, r#"{"YES": 2.0, "NO": 0.0}"#, r#"{"YES": 1.0, "NO": 1.0}"#, "null", "<html>"]
        {
            assert!(matches!(read(unreadable), Err(NoVote::Unreadable(_))), "{unreadable}");
        }
        assert!(matches!(super::read(br#"{"answers": {}}"#, &task), Err(NoVote::Unreadable(_))));
    }
}
