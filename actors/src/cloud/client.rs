//! The HTTP client of a cloud model: retries where that may help, and never beyond the deadline.

use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

use super::budget::{Budget, Reservation};
use super::encode::EncodedImage;
use super::section::CloudSection;
use super::usage::{Tokens, image_tokens};

/// The longest body that is read: no answer is longer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The wait before the first retry; doubled each time, and up to twice as long by jitter.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A question as it is sent.
#[derive(Debug)]
pub(super) struct Call {
    /// The path below the base address.
    path: &'static str,
    body: Bytes,
    /// The tokens that it takes, estimated on the safe side.
    estimate: Tokens,
}

impl Call {
    /// Makes a call with a body that holds the image, whose answer may have so many tokens.
    pub(super) fn new(path: &'static str, body: &Value, image: &EncodedImage, output_tokens: u32) -> Self {
        let body = Bytes::from(body.to_string());
        // A token is at least a byte of all that is not the image.
        let text_bytes = body.len().saturating_sub(image.base64.len());
        let input = text_bytes as f64 + image_tokens(image.width, image.height) as f64;
        Self { path, body, estimate: Tokens { input, output: f64::from(output_tokens) } }
    }
}

/// The reason why there is no answer, in words for people; never with the key or the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The connection failed or broke.
    #[error("the server cannot be reached: {cause}")]
    Connection {
        cause: String,
        /// True where the request may have reached the server.
        was_open: bool,
    },
    /// The status was not 200.
    #[error("the server answered with status {status}")]
    Status {
        status: u16,
        /// The wait that the server asks for.
        retry_after: Option<Duration>,
    },
    /// The body was longer than any answer is.
    #[error("the server's answer is longer than {BODY_BYTES_MAX} bytes")]
    TooLong,
    /// There is no money for one more request.
    #[error("the hour's budget has been spent (max_usd_per_hour)")]
    OverBudget,
}

impl CallError {
    /// Returns whether the same request may succeed a little later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::TooLong | Self::OverBudget => false,
        }
    }

    /// Returns whether the server failed, rather than rejected the request; `None` where it was not asked.
    pub(super) fn is_server_failure(&self) -> Option<bool> {
        match self {
            Self::OverBudget => None,
            Self::TooLong => Some(true),
            Self::Connection { .. } | Self::Status { .. } => Some(self.is_transient()),
        }
    }

    /// Returns whether the server did no work that it could charge for. Of the 5xx only those do that say the
    /// server is too busy (503, and 529 of Anthropic): a 500 may come in the middle of the work, and behind
    /// the gateway of a 502 or 504, or of a 408 as `LiteLLM` gives it, the work may have been done.
    fn is_free(&self) -> bool {
        match self {
            Self::Connection { was_open, .. } => !was_open,
            Self::Status { status, .. } => *status != 408 && matches!(status, 300..=499 | 503 | 529),
            Self::TooLong => false,
            Self::OverBudget => true,
        }
    }
}

/// A server and the key for it.
pub(super) struct Remote {
    http: Client,
    base: String,
    headers: HeaderMap,
    max_retries: usize,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Remote").finish_non_exhaustive()
    }
}

impl Remote {
    /// Creates the client.
    ///
    /// # Errors
    /// When the key cannot stand in a header, or TLS cannot be set up.
    pub(super) fn new(section: &CloudSection) -> Result<Self, String> {
        // Another part of the process may have installed one before.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = section.api_key_env.as_deref().and_then(|variable| std::env::var(variable).ok()) {
            let mut value = HeaderValue::try_from(format!("Bearer {}", key.trim()))
                .map_err(|_| "the API key cannot stand in a header".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = Client::builder()
            // A redirect would send the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(section.max_in_flight)
            .build()
            .map_err(|error| error.without_url().to_string())?;
        let base = section.base_url.trim_end_matches('/').to_owned();
        Ok(Self { http, base, headers, max_retries: section.max_retries })
    }

    /// Asks a question and returns the body of the answer, and the money that was set aside for it. Retries
    /// while that may help and there are time and money; the caller cancels it at `until`.
    pub(super) async fn post<'a>(
        &self,
        call: &Call,
        until: Instant,
        budget: &'a Budget,
    ) -> Result<(Bytes, Reservation<'a>), CallError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF)
            .with_max_delay(BACKOFF_MAX)
            .with_max_times(self.max_retries)
            .with_jitter();
        (|| self.post_once(call, budget))
            .retry(backoff)
            .when(CallError::is_transient)
            .adjust(|error, delay| {
                let asked = match error {
                    CallError::Status { retry_after, .. } => *retry_after,
                    _ => None,
                };
                // A retry that would come too late is not sent at all.
                let delay = asked.map_or(delay, |asked| delay.map(|delay| delay.max(asked)));
                delay.filter(|delay| Instant::now() + *delay < until)
            })
            .await
    }

    /// Each request is paid for by itself. Where there is no answer, or nobody waits for it any more, what
    /// was set aside is booked when it is dropped here.
    async fn post_once<'a>(
        &self,
        call: &Call,
        budget: &'a Budget,
    ) -> Result<(Bytes, Reservation<'a>), CallError> {
        let reservation = budget.reserve(call.estimate).await.ok_or(CallError::OverBudget)?;
        match self.send(call).await {
            Ok(body) => Ok((body, reservation)),
            Err(error) => {
                if error.is_free() {
                    reservation.release();
                }
                Err(error)
            }
        }
    }

    async fn send(&self, call: &Call) -> Result<Bytes, CallError> {
        let broken = |error: reqwest::Error| {
            let was_open = !error.is_connect();
            CallError::Connection { cause: root_cause(&error.without_url()), was_open }
        };
        let url = format!("{}{}", self.base, call.path);
        let request = self.http.post(url).headers(self.headers.clone()).body(call.body.clone());
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(CallError::Status { status: status.as_u16(), retry_after: retry_after(&response) });
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if bytes.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(CallError::TooLong);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// Returns the `Retry-After` in seconds; a date is ignored.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Returns the innermost cause: reqwest's own message only says that sending failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_estimated_by_its_text_and_the_size_of_its_image() {
        let image = EncodedImage { base64: "A".repeat(10_000), width: 512, height: 512 };
        let body = Value::String(format!("Is there road work? {}", image.base64));
        let call = Call::new("/chat/completions", &body, &image, 8);
        assert_eq!(call.estimate, Tokens { input: 22.0 + 349.0, output: 8.0 });
    }

    #[test]
    fn only_a_refusal_before_the_work_is_free() {
        let status = |status| CallError::Status { status, retry_after: None };
        let connection = |was_open| CallError::Connection { cause: "closed".to_owned(), was_open };
        for free in
            [status(302), status(400), status(401), status(404), status(429), status(503), status(529)]
        {
            assert!(free.is_free(), "{free}");
        }
        for paid in [status(202), status(408), status(500), status(502), status(504), status(524)] {
            assert!(!paid.is_free(), "{paid}");
        }
        assert!(connection(false).is_free() && !connection(true).is_free() && !CallError::TooLong.is_free());
    }
}
