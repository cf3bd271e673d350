//! The logs and traces of a process. It knows nothing of models, policies or HTTP.

mod connections;
mod counters;
mod exporter;
mod log_queue;
mod request;
mod section;

pub use counters::LogCounters;
pub use request::{RequestContext, Sampling, TRACEPARENT};
pub use section::TelemetrySection;

use std::io::{IsTerminal, stderr};

use concord_actors::TRACE_TARGET;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use connections::{MalformedRequests, WithoutShutdownError};
use exporter::ServiceExporter;
use log_queue::LogQueue;

/// The filter of a server's log where `RUST_LOG` sets none. Whoever sends what is not HTTP would write the
/// lines of `actix_http`; such requests are counted instead.
const SERVER_FILTER: &str = "info,actix_http=off";

/// Returns the filter that `RUST_LOG` sets, or otherwise `default`.
fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default))
}

/// Returns whether the log has colours: at a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
fn has_colours() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Sets up logs for people, on standard error, from warnings up.
pub fn log_warnings() {
    let logs = tracing_subscriber::fmt().with_env_filter(filter("warn")).with_ansi(has_colours());
    logs.with_writer(stderr).init();
}

/// The log of a server and the exporter of its traces; what is left of both is written at shutdown.
#[derive(Debug)]
pub struct Telemetry {
    log: LogQueue,
    counters: LogCounters,
    provider: Option<SdkTracerProvider>,
    sampling: Sampling,
}

impl Telemetry {
    /// Sets up the logs of a server and, where a receiver is configured, its traces. Must be called once,
    /// outside any async runtime.
    ///
    /// # Errors
    /// Returns an error if the exporter's HTTP client cannot be created.
    pub fn start(section: &TelemetrySection) -> Result<Self, reqwest::Error> {
        let log = LogQueue::start();
        let malformed = MalformedRequests::default();
        let counters = LogCounters::new(log.dropped_lines(), malformed.clone());
        let of_reader = Targets::new().with_target(connections::READER, LevelFilter::ERROR);
        let subscriber =
            tracing_subscriber::registry().with(lines(section, &log)).with(malformed.with_filter(of_reader));
        let Some(endpoint) = &section.otlp_endpoint else {
            subscriber.init();
            return Ok(Self { log, counters, provider: None, sampling: Sampling::none() });
        };
        // Every span that gets here is exported: requests are sampled when they arrive.
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(ServiceExporter::new(endpoint)?).build();
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("concord"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_target(false)
            .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target() == TRACE_TARGET));
        subscriber.with(spans).init();
        let sampling = Sampling::new(section.sample_ratio);
        Ok(Self { log, counters, provider: Some(provider), sampling })
    }

    /// Returns the choice of requests whose trace is exported.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Returns what is counted instead of being logged.
    pub fn counters(&self) -> LogCounters {
        self.counters.clone()
    }

    /// Sends the spans and writes the lines that are left, within a few seconds.
    pub fn shutdown(self) {
        if let Some(Err(error)) = self.provider.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last traces may be lost: check otlp_endpoint in [telemetry]");
        }
        self.log.flush();
    }
}

/// Returns the layer that formats the lines of a server's log.
fn lines(section: &TelemetrySection, log: &LogQueue) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = tracing_subscriber::fmt::layer().with_writer(log.writer.clone()).with_ansi(has_colours());
    let filter = filter(SERVER_FILTER).and(WithoutShutdownError);
    match section.log_format.as_str() {
        "json" => lines.json().flatten_event(true).with_span_list(false).with_filter(filter).boxed(),
        _ => lines.with_filter(filter).boxed(),
    }
}
