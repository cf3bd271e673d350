//! A request to somebody's server: repeated where that may help, never longer than it is wanted.

use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};
use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};

use super::section::CloudSection;

/// A verdict, or a page of HTML: nothing longer is an answer.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The first wait before a request is repeated; doubled each time, and up to twice as long by chance.
const BACKOFF: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Why there is no answer, in words for people; never with the key or the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// No connection, or one that broke.
    #[error("the server cannot be reached: {0}")]
    Connection(String),
    /// Anything but 200.
    #[error("the server answered with status {status}")]
    Status {
        status: u16,
        /// How long the server asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// An answer that is longer than any answer is.
    #[error("the server's answer is longer than {BODY_BYTES_MAX} bytes")]
    TooLong,
}

impl CallError {
    /// Whether the same request may succeed a little later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Connection(_) => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::TooLong => false,
        }
    }

    /// Whether it says that the server is ill, rather than that it did not like the request.
    pub(super) fn is_servers_fault(&self) -> bool {
        self.may_pass()
    }
}

/// A server, and the key for it.
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
    /// # Errors
    /// When the key cannot stand in a header, or there is no TLS.
    pub(super) fn new(section: &CloudSection) -> Result<Self, String> {
        // Another part of the process may have chosen one before.
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
            // A server that sends requests elsewhere would get the key there.
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(section.max_in_flight)
            .build()
            .map_err(|error| error.without_url().to_string())?;
        let base = section.base_url.trim_end_matches('/').to_owned();
        Ok(Self { http, base, headers, max_retries: section.max_retries })
    }

    /// Posts JSON, and gives the body of the answer. Repeats the request while that may help and there is time;
    /// whoever calls ends it at `until`.
    pub(super) async fn post(&self, path: &str, body: Bytes, until: Instant) -> Result<Bytes, CallError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(BACKOFF)
            .with_max_delay(BACKOFF_MAX)
            .with_max_times(self.max_retries)
            .with_jitter();
        (|| self.post_once(path, body.clone()))
            .retry(backoff)
            .when(CallError::may_pass)
            .adjust(|error, delay| {
                let asked = match error {
                    CallError::Status { retry_after, .. } => *retry_after,
                    _ => None,
                };
                // One that would come too late is not sent at all.
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

/// In seconds; a date is not waited for.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// reqwest's own message only says that sending failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
