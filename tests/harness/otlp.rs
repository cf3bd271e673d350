//! A real OTLP receiver, which decodes what exporters send.

use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use actix_web::{App, HttpResponse, HttpServer, web};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// A span, and the service that sent it.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedSpan {
    pub(crate) service: String,
    pub(crate) span: Span,
}

/// A receiver that listens for as long as the test program runs.
pub(crate) struct Receiver {
    pub(crate) address: String,
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let spans = Arc::new(Mutex::new(Vec::new()));
        let (bound, port) = mpsc::channel();
        let shared = Arc::clone(&spans);
        std::thread::spawn(move || {
            actix::System::new().block_on(async move {
                let app = move || {
                    let spans = web::Data::new(Arc::clone(&shared));
                    App::new().app_data(spans).route("/v1/traces", web::post().to(receive))
                };
                let server =
                    HttpServer::new(app).workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
                bound.send(server.addrs()[0].port()).unwrap();
                server.run().await.unwrap();
            });
        });
        Self { address: format!("http://127.0.0.1:{}", port.recv().unwrap()), spans }
    }

    /// Returns every span so far.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        self.spans.lock().unwrap().clone()
    }

    /// Waits until `enough` holds for the spans, and returns them.
    pub(crate) fn wait_for(&self, what: &str, enough: impl Fn(&[ReceivedSpan]) -> bool) -> Vec<ReceivedSpan> {
        let started = Instant::now();
        loop {
            let spans = self.spans();
            if enough(&spans) {
                return spans;
            }
            let names: Vec<&str> = spans.iter().map(|received| received.span.name.as_str()).collect();
            assert!(started.elapsed() < Duration::from_secs(60), "no {what} among {names:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

async fn receive(body: web::Bytes, spans: web::Data<Arc<Mutex<Vec<ReceivedSpan>>>>) -> HttpResponse {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource in request.resource_spans {
        let attributes = &resource.resource.as_ref().unwrap().attributes;
        let service = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
        let service = text(service.value.as_ref()).to_owned();
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.lock().unwrap().push(ReceivedSpan { service: service.clone(), span });
        }
    }
    HttpResponse::Ok().finish()
}

impl ReceivedSpan {
    /// Returns the attribute of that name, as text.
    pub(crate) fn attribute(&self, key: &str) -> Option<String> {
        use opentelemetry_proto::tonic::common::v1::any_value::Value;
        let attribute = self.span.attributes.iter().find(|attribute| attribute.key == key)?;
        Some(match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => text.clone(),
            Value::BoolValue(flag) => flag.to_string(),
            Value::IntValue(number) => number.to_string(),
            Value::DoubleValue(number) => number.to_string(),
            other => format!("{other:?}"),
        })
    }
}

fn text(value: Option<&opentelemetry_proto::tonic::common::v1::AnyValue>) -> &str {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("not a text: {other:?}"),
    }
}
