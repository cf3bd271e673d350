//! The tokens that an exchange is paid by: those that the server says it counted, and an estimate for when it
//! does not say.

use serde::Deserialize;
use serde_json::Value;

/// The most tokens that are believed: no model takes as many for an image and a question.
const TOKENS_MAX: f64 = 1e6;
/// The tokens that OpenAI documents for an image, and for each square of it.
const TOKENS_PER_IMAGE: u64 = 85;
const TOKENS_PER_SQUARE: u64 = 170;
const SQUARE_SIDE: u32 = 512;
/// The pixels of a token that Anthropic documents; Qwen's vision models have about as many (28 × 28).
const PIXELS_PER_TOKEN: u64 = 750;

/// The tokens of an exchange.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tokens {
    pub(super) input: f64,
    pub(super) output: f64,
}

/// The tokens that a server says it counted; `None` where it does not say, or says what cannot be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    pub(super) input: Option<f64>,
    pub(super) output: Option<f64>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    usage: Value,
}

impl Usage {
    /// Reads the usage of an answer's body, whatever else the body holds: an answer that cannot be used is
    /// paid for all the same.
    pub(super) fn read(body: &[u8]) -> Self {
        let usage = serde_json::from_slice(body).map_or(Value::Null, |body: Body| body.usage);
        // There is always an image and a question: 0 input tokens were not counted.
        let input = tokens(&usage, ["prompt_tokens", "input_tokens"], 1.0);
        let output = tokens(&usage, ["completion_tokens", "output_tokens"], 0.0);
        Self { input, output }
    }
}

fn tokens(usage: &Value, names: [&str; 2], least: f64) -> Option<f64> {
    let tokens = names.iter().find_map(|name| usage.get(name)?.as_f64())?;
    (least..=TOKENS_MAX).contains(&tokens).then_some(tokens)
}

/// Estimates the tokens of an image of this size: those of whichever provider counts more.
pub(super) fn image_tokens(width: u32, height: u32) -> u64 {
    let squares = u64::from(width.div_ceil(SQUARE_SIDE)) * u64::from(height.div_ceil(SQUARE_SIDE));
    let pixels = u64::from(width) * u64::from(height);
    (TOKENS_PER_IMAGE + TOKENS_PER_SQUARE * squares).max(pixels / PIXELS_PER_TOKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_that_cannot_be_is_unknown_and_the_rest_of_the_body_does_not_matter() {
        for (body, input, output) in [
            (r#"{"usage": {"prompt_tokens": 100, "completion_tokens": 1}}"#, Some(100.0), Some(1.0)),
            (r#"{"usage": {"input_tokens": 40, "output_tokens": 0}}"#, Some(40.0), Some(0.0)),
            (r#"{"choices": 7, "usage": {"prompt_tokens": 100.0}}"#, Some(100.0), None),
            (r#"{"usage": {"prompt_tokens": null, "completion_tokens": 2}}"#, None, Some(2.0)),
            (r#"{"usage": {"prompt_tokens": 0, "completion_tokens": 0}}"#, None, Some(0.0)),
            (r#"{"usage": {"prompt_tokens": -100, "completion_tokens": -1}}"#, None, None),
            (r#"{"usage": {"prompt_tokens": 1e300, "completion_tokens": 18446744073709551615}}"#, None, None),
            (r#"{"usage": {"prompt_tokens": "100", "completion_tokens": {}}}"#, None, None),
            (r#"{"usage": null, "choices": []}"#, None, None),
            (r#"{"usage": []}"#, None, None),
            ("{}", None, None),
            ("[1]", None, None),
            ("<html>", None, None),
        ] {
            assert_eq!(Usage::read(body.as_bytes()), Usage { input, output }, "{body}");
        }
    }

    #[test]
    fn an_image_costs_what_the_dearer_way_of_counting_makes_of_it() {
        for ((width, height), tokens) in
            [((1, 1), 255), ((512, 512), 349), ((513, 512), 425), ((768, 768), 786), ((4096, 4096), 22369)]
        {
            assert_eq!(image_tokens(width, height), tokens, "{width} × {height}");
        }
    }
}
