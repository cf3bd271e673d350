//! The section `[telemetry]`: the receiver of traces, their share, and the format of logs.

use concord_actors::{Diagnostic, not_one_of};
use serde::Deserialize;

/// The section `[telemetry]` of `ensemble.toml`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct TelemetrySection {
    /// The base URL of an OTLP receiver over HTTP, such as `http://localhost:4318`; without it there are no
    /// traces.
    pub otlp_endpoint: Option<String>,
    /// The share of requests whose trace is exported, from 0 to 1. The sampled flag of a caller's
    /// `traceparent` takes precedence.
    pub sample_ratio: f64,
    /// The format of the log that `concord serve` writes to standard error: `human` or `json`.
    pub log_format: String,
}

/// The formats of a log.
const LOG_FORMATS: [&str; 2] = ["human", "json"];

impl Default for TelemetrySection {
    fn default() -> Self {
        // One in a hundred shows the usual at next to no cost.
        Self { otlp_endpoint: None, sample_ratio: 0.01, log_format: "human".to_owned() }
    }
}

impl TelemetrySection {
    /// Returns a diagnostic for each field that cannot be used.
    pub fn check(&self) -> Vec<Diagnostic> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| faults.push(Diagnostic::new(vec![key.into()], message));
        if let Some(endpoint) = &self.otlp_endpoint {
            let is_http = reqwest::Url::parse(endpoint)
                .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if !is_http {
                fault("otlp_endpoint", format!("{endpoint:?} is not a URL: must be http://HOST:PORT"));
            }
        }
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            fault("sample_ratio", format!("{} is out of range: must be from 0 to 1", self.sample_ratio));
        }
        if !LOG_FORMATS.contains(&self.log_format.as_str()) {
            fault("log_format", not_one_of(&self.log_format, "a log format", LOG_FORMATS));
        }
        faults
    }
}
