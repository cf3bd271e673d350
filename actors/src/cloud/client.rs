//! The HTTP client of a cloud model: retries where that may help, and never beyond the deadline.

use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};

use super::section::CloudSection;

/// The longest body that is read: no answer is longer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The wait before the first retry; doubled each time, and up to twice as long by jitter.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The reason why there is no answer, in words for people; never with the key or the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The connection failed or broke.
    #[error("the server cannot be reached: {0}")]
    Connection(String),
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
}

impl CallError {
    /// Returns whether the same request may succeed a little later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::TooLong => false,
        }
    }

    /// Returns whether the server failed, rather than rejected the request.
    pub(super) fn is_server_failure(&self) -> bool {
        self.is_transient()
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

    /// Posts JSON and returns the body of the answer. Retries while that may help and there is time; the
    /// caller cancels it at `until`.
    pub(super) async fn post(&self, path: &str, body: Bytes, until: Instant) -> Result<Bytes, CallError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF)
            .with_max_delay(BACKOFF_MAX)
            .with_max_times(self.max_retries)
            .with_jitter();
        (|| self.post_once(path, body.clone()))
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

    async fn post_once(&self, path: &str, body: Bytes) -> Result<Bytes, CallError> {
        let broken = |error: reqwest::Error| CallError::Connection(root_cause(&error.without_url()));
        let request = self.http.post(format!("{}{path}", self.base)).headers(self.headers.clone()).body(body);
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
