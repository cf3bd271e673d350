//! `[models.NAME]` with `architecture = "cloud"`: a model behind a server.

use serde::Deserialize;

use crate::diagnostic::{Diagnostic, not_one_of};

/// The protocol that a server is asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// `POST /chat/completions`, the protocol of vLLM, SGLang and hosted models.
    OpenAi,
    /// `POST /systemone` of `transformers serve`: a probability for each allowed answer, and no text.
    SystemOne,
}

/// The section of a model behind a server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct CloudSection {
    /// Always `cloud`.
    pub architecture: String,
    /// The base address, up to and including the version, for instance `https://api.example.com/v1`.
    pub base_url: String,
    /// The model's name at the server.
    pub model: String,
    /// `openai` or `systemone`.
    pub protocol: String,
    /// The environment variable that holds the API key. The model is off while the variable is not set; where
    /// none is named, the server is asked without a key.
    pub api_key_env: Option<String>,
    /// The longer side, in pixels, that larger images are scaled down to before they are sent.
    pub max_image_side: u32,
    /// The time, in milliseconds, after which a missing answer is a failed vote.
    pub timeout_ms: u64,
    /// The most requests in flight at once.
    pub max_in_flight: usize,
    /// The most retries after a failed connection, or a status 408, 429 or 5xx.
    pub max_retries: usize,
    /// The price of a million input tokens in US dollars.
    pub usd_per_million_input_tokens: f64,
    /// The price of a million output tokens in US dollars.
    pub usd_per_million_output_tokens: f64,
    /// The budget of an hour in US dollars: the model is not asked when it has been spent. Shared through
    /// Redis where the cache is there. Required where there are prices.
    pub max_usd_per_hour: Option<f64>,
}

const PROTOCOLS: [(&str, Protocol); 2] = [("openai", Protocol::OpenAi), ("systemone", Protocol::SystemOne)];
/// The range of `max_image_side`: servers scale larger images down themselves.
const SIDE: std::ops::RangeInclusive<u64> = 32..=4096;
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1..=120_000;
const IN_FLIGHT: std::ops::RangeInclusive<u64> = 1..=1024;
const RETRIES: std::ops::RangeInclusive<u64> = 0..=10;

impl Default for CloudSection {
    fn default() -> Self {
        Self {
            architecture: String::new(),
            base_url: String::new(),
            model: String::new(),
            protocol: "openai".to_owned(),
            api_key_env: None,
            max_image_side: 768,
            timeout_ms: 5_000,
            max_in_flight: 16,
            max_retries: 2,
            usd_per_million_input_tokens: 0.0,
            usd_per_million_output_tokens: 0.0,
            max_usd_per_hour: None,
        }
    }
}

impl CloudSection {
    /// The architecture's name in `ensemble.toml`.
    pub const ARCHITECTURE: &'static str = "cloud";

    /// Returns the protocol that the server is asked by.
    pub fn protocol(&self) -> Protocol {
        let known = PROTOCOLS.iter().find(|(name, _)| *name == self.protocol);
        known.map_or(Protocol::OpenAi, |(_, protocol)| *protocol)
    }

    /// Returns whether the model can be asked: its key is set, or it needs none.
    pub fn is_on(&self) -> bool {
        self.api_key_env
            .as_deref()
            .is_none_or(|variable| std::env::var_os(variable).is_some_and(|key| !key.is_empty()))
    }

    /// Returns the fields that cannot be used.
    pub fn check(&self) -> Vec<Diagnostic> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| faults.push(Diagnostic::new(vec![key.into()], message));
        let url = reqwest::Url::parse(&self.base_url).ok();
        // The address is not repeated: it may hold a password.
        if !url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()) {
            fault("base_url", "is missing or not an address: must be like https://HOST/v1".to_owned());
        }
        if self.model.trim().is_empty() {
            fault("model", "is missing or empty: must be what the server calls the model".to_owned());
        }
        if !PROTOCOLS.iter().any(|(name, _)| *name == self.protocol) {
            fault("protocol", not_one_of(&self.protocol, "a protocol", PROTOCOLS.map(|(name, _)| name)));
        }
        if self.api_key_env.as_deref().is_some_and(|name| name.is_empty() || name.contains('=')) {
            fault("api_key_env", "is not the name of an environment variable".to_owned());
        }
        for (key, value, range) in [
            ("max_image_side", u64::from(self.max_image_side), SIDE),
            ("timeout_ms", self.timeout_ms, TIMEOUT_MS),
            ("max_in_flight", self.max_in_flight as u64, IN_FLIGHT),
            ("max_retries", self.max_retries as u64, RETRIES),
        ] {
            if !range.contains(&value) {
                let (least, most) = (range.start(), range.end());
                fault(key, format!("{value} is out of range: must be from {least} to {most}"));
            }
        }
        let prices = [
            ("usd_per_million_input_tokens", self.usd_per_million_input_tokens),
            ("usd_per_million_output_tokens", self.usd_per_million_output_tokens),
        ];
        for (key, price) in prices {
            if !(price >= 0.0 && price.is_finite()) {
                fault(key, format!("{price} is not a price: must be 0 or more"));
            }
        }
        match self.max_usd_per_hour {
            None if prices.iter().any(|(_, price)| *price > 0.0) => {
                fault(
                    "max_usd_per_hour",
                    "is missing: where there are prices, there must be a limit".to_owned(),
                );
            }
            Some(limit) if !(limit > 0.0 && limit.is_finite()) => {
                fault("max_usd_per_hour", format!("{limit} is not a limit: must be greater than 0"));
            }
            _ => {}
        }
        faults
    }
}
