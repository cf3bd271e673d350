//! Exports the spans of every actor under a service of its own: spans are sorted by the service that they
//! name, and each service has an exporter with that name.

use std::collections::HashMap;
use std::time::Duration;

use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::sync::Mutex;

/// The attribute by which a span names its service.
const SERVICE: &str = "concord.service";
/// The service of spans that name none.
const DEFAULT_SERVICE: &str = "concord";
/// The time after which a batch that the receiver has not accepted is dropped.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most services: there are as many as actors, and more than this would be a bug.
const SERVICES_MAX: usize = 256;

/// An exporter for each service, created on its first span.
#[derive(Debug)]
pub(super) struct ServiceExporter {
    endpoint: String,
    client: reqwest::blocking::Client,
    /// Behind a lock because an exporter is shared; it never contends, since one batch is exported at a time.
    services: Mutex<HashMap<String, OtlpExporter>>,
}

impl ServiceExporter {
    /// Returns an exporter to the receiver at `base`, for instance `http://localhost:4318`. Must not be
    /// called inside an async runtime.
    ///
    /// # Errors
    /// Returns an error if the HTTP client cannot be created.
    pub(super) fn new(base: &str) -> Result<Self, reqwest::Error> {
        Ok(Self {
            endpoint: format!("{}/v1/traces", base.trim_end_matches('/')),
            client: reqwest::blocking::Client::builder().timeout(TIMEOUT).build()?,
            services: Mutex::new(HashMap::new()),
        })
    }

    fn exporter(&self, service: &str) -> Result<OtlpExporter, ExporterBuildError> {
        let mut exporter = OtlpExporter::builder()
            .with_http()
            .with_http_client(self.client.clone())
            .with_endpoint(self.endpoint.clone())
            .with_timeout(TIMEOUT)
            .build()?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource =
            Resource::builder().with_service_name(service.to_owned()).with_attribute(version).build();
        exporter.set_resource(&resource);
        Ok(exporter)
    }
}

impl SpanExporter for ServiceExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut by_service: HashMap<String, Vec<SpanData>> = HashMap::new();
        for mut span in batch {
            by_service.entry(take_service(&mut span)).or_default().push(span);
        }
        let mut services = self.services.lock().await;
        let mut result = Ok(());
        for (service, spans) in by_service {
            if !services.contains_key(&service) && services.len() < SERVICES_MAX {
                let failed = |error: ExporterBuildError| OTelSdkError::InternalFailure(error.to_string());
                services.insert(service.clone(), self.exporter(&service).map_err(failed)?);
            }
            if let Some(exporter) = services.get(&service) {
                // A failure of one service must not lose the spans of the others.
                result = result.and(exporter.export(spans).await);
            }
        }
        result
    }
}

/// Removes and returns the service that a span names.
fn take_service(span: &mut SpanData) -> String {
    let index = span.attributes.iter().position(|attribute| attribute.key.as_str() == SERVICE);
    match index.map(|index| span.attributes.swap_remove(index).value) {
        Some(Value::String(name)) => name.as_str().to_owned(),
        _ => DEFAULT_SERVICE.to_owned(),
    }
}
