//! The span that travels with a request through all actors.

use tracing::Span;

/// The target of every span that is exported; the exporter takes no other.
pub const TRACE_TARGET: &str = "concord::trace";

/// A request's span, and whether its trace is exported. Where it is not, no spans are created under it: they
/// would cost several microseconds a request for nothing.
#[derive(Debug, Clone)]
pub struct Trace {
    span: Span,
    sampled: bool,
}

impl Trace {
    /// Creates a trace under this span.
    pub fn new(span: Span, sampled: bool) -> Self {
        Self { span, sampled }
    }

    /// Creates a trace without any span.
    pub fn none() -> Self {
        Self { span: Span::none(), sampled: false }
    }

    /// Returns the span.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Returns whether it is exported.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// Returns a span under this one. Where the trace is not exported, it is this one again, so that log
    /// lines there still name their request.
    #[must_use]
    pub fn child(&self, make: impl FnOnce(&Span) -> Span) -> Self {
        if self.sampled { Self { span: make(&self.span), sampled: true } } else { self.clone() }
    }

    /// Records a field of the span, where the trace is exported.
    pub fn record<V: tracing::Value>(&self, field: &str, value: V) {
        if self.sampled {
            self.span.record(field, value);
        }
    }
}
