//! The identity of a request: its id, its trace, and whether that trace is exported.

use concord_actors::{TRACE_TARGET, Trace};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceId};
use opentelemetry::{Context, SpanId};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

/// The header of the W3C recommendation ["Trace Context"](https://www.w3.org/TR/trace-context/).
pub const TRACEPARENT: &str = "traceparent";

/// The identity of a request in responses, logs and spans.
#[derive(Debug, Clone)]
pub struct RequestContext {
    /// The identifier of the request: a UUIDv7.
    pub id: Uuid,
    /// The request's span, which is the parent of all actors' spans.
    pub trace: Trace,
    /// The identifier of the trace, in hexadecimal digits.
    pub trace_id: String,
    /// The `traceparent` header of the response.
    pub traceparent: String,
}

/// The choice of requests whose trace is exported.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// The share of requests; 0 where there is no receiver.
    ratio: f64,
}

impl Sampling {
    /// Samples this share of the requests.
    pub(crate) fn new(ratio: f64) -> Self {
        Self { ratio }
    }

    /// Samples none of the requests.
    pub fn none() -> Self {
        Self { ratio: 0.0 }
    }

    /// Returns the identity of a request to `route` that has just arrived, as a child of the caller's
    /// `traceparent` if there is one. The caller's sampling decision is followed, except that nothing is
    /// exported without a receiver.
    pub fn request(self, route: &'static str, traceparent: Option<&str>) -> RequestContext {
        let id = Uuid::now_v7();
        let parent = traceparent.and_then(parse);
        let trace_id = parent
            .as_ref()
            .map_or_else(|| RandomIdGenerator::default().new_trace_id(), SpanContext::trace_id);
        let sampled =
            self.ratio > 0.0 && parent.as_ref().map_or(self.chooses(trace_id), SpanContext::is_sampled);
        if sampled { exported(id, route, parent) } else { unexported(id, route, trace_id) }
    }

    /// Decides by the lower half of the trace id, as `TraceIdRatioBased` of the OpenTelemetry specification
    /// does.
    fn chooses(self, trace_id: TraceId) -> bool {
        // The specification uses 63 bits of it.
        let low = u128::from_be_bytes(trace_id.to_bytes()) as u64 >> 1;
        (low as f64) < self.ratio * (1_u64 << 63) as f64
    }
}

fn exported(id: Uuid, route: &'static str, parent: Option<SpanContext>) -> RequestContext {
    let span = tracing::info_span!(target: TRACE_TARGET, parent: None, "request", otel.name = route,
        otel.kind = "server", concord.service = "concord-endpoint", request_id = %id, trace_id = Empty,
        http.response.status_code = Empty, otel.status_code = Empty);
    if let Some(parent) = parent {
        // Fails only where there is no exporter.
        let _no_layer = span.set_parent(Context::new().with_remote_span_context(parent));
    }
    let context = span.context();
    let (trace_id, span_id) = {
        let span = context.span();
        (span.span_context().trace_id(), span.span_context().span_id())
    };
    span.record("trace_id", tracing::field::display(trace_id));
    RequestContext {
        id,
        trace: Trace::new(span, true),
        trace_id: trace_id.to_string(),
        traceparent: format(trace_id, span_id, TraceFlags::SAMPLED),
    }
}

/// Returns the context of a request whose span is for the log only.
fn unexported(id: Uuid, route: &'static str, trace_id: TraceId) -> RequestContext {
    let span: Span = tracing::info_span!(target: "concord::request", parent: None, "request", route,
        request_id = %id, trace_id = %trace_id);
    let span_id = RandomIdGenerator::default().new_span_id();
    RequestContext {
        id,
        trace: Trace::new(span, false),
        trace_id: trace_id.to_string(),
        traceparent: format(trace_id, span_id, TraceFlags::default()),
    }
}

fn format(trace_id: TraceId, span_id: SpanId, flags: TraceFlags) -> String {
    format!("00-{trace_id}-{span_id}-{flags:02x}")
}

/// Parses `00-TRACE-PARENT-FLAGS`. Returns `None` for anything else, which starts a new trace, as the
/// recommendation asks.
///
/// `opentelemetry_sdk`'s `TraceContextPropagator` (0.33) is not used because it does not check the lengths of
/// the parts, so that a malformed header would become a parent.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let (version, trace_id, span_id, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let has_form = is_hex(version, 2) && is_hex(trace_id, 32) && is_hex(span_id, 16) && is_hex(flags, 2);
    // Unknown versions may have more parts; version 0 has exactly four.
    if !has_form || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
    let context = SpanContext::new(
        TraceId::from_hex(trace_id).ok()?,
        SpanId::from_hex(span_id).ok()?,
        flags & TraceFlags::SAMPLED,
        true,
        Default::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_valid_traceparent_is_parsed_and_a_malformed_one_is_ignored() {
        let context = parse(PARENT).unwrap();
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(context.is_sampled() && context.is_remote());
        assert!(parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-more").is_some());
        for malformed in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert!(parse(malformed).is_none(), "{malformed:?}");
        }
    }

    #[test]
    fn a_callers_trace_is_continued_and_otherwise_the_ratio_samples() {
        let request = Sampling::none().request("test", Some(PARENT));
        assert_eq!(request.trace_id, "0af7651916cd43dd8448eb211c80319c");
        assert!(request.traceparent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
        assert_eq!(request.id.get_version_num(), 7);
        let chosen = |ratio: f64| {
            let ids = (0..1000).map(|_| RandomIdGenerator::default().new_trace_id());
            ids.filter(|id| Sampling::new(ratio).chooses(*id)).count()
        };
        assert_eq!((chosen(0.0), chosen(1.0)), (0, 1000));
        assert!((300..700).contains(&chosen(0.5)));
    }
}
