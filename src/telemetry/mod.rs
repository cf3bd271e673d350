//! The logs and traces of a process. It knows nothing of models, policies or HTTP.

mod exporter;
mod request;
mod section;

pub use request::{RequestContext, Sampling, TRACEPARENT};
pub use section::TelemetrySection;

use concord_actors::TRACE_TARGET;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use exporter::ServiceExporter;

/// Returns the filter that `RUST_LOG` sets, or otherwise one from `level` up.
fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level))
}

/// Sets up logs for people, on standard error, from warnings up.
pub fn log_warnings() {
    tracing_subscriber::fmt().with_env_filter(filter("warn")).with_writer(std::io::stderr).init();
}

/// The exporter of a server's traces; spans that are left are sent at shutdown.
#[derive(Debug)]
pub struct Telemetry {
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
        let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let logs: Box<dyn Layer<Registry> + Send + Sync> = match section.log_format.as_str() {
            "json" => {
                logs.json().flatten_event(true).with_span_list(false).with_filter(filter("info")).boxed()
            }
            _ => logs.with_filter(filter("info")).boxed(),
        };
        let Some(endpoint) = &section.otlp_endpoint else {
            tracing_subscriber::registry().with(logs).init();
            return Ok(Self { provider: None, sampling: Sampling::none() });
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
        tracing_subscriber::registry().with(logs).with(spans).init();
        Ok(Self { provider: Some(provider), sampling: Sampling::new(section.sample_ratio) })
    }

    /// Returns the choice of requests whose trace is exported.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Sends the spans that are left, within a few seconds.
    pub fn shutdown(&self) {
        if let Some(Err(error)) = self.provider.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last traces may be lost: check otlp_endpoint in [telemetry]");
        }
    }
}
