//! The span that travels with a request through all actors.

use tracing::Span;

/// The target of every span that is exported; the exporter takes no other.
pub const TRACE_TARGET: &str = "concord::trace";

/// A request's span, and whether its trace is exported. Where it is not, no spans are made under it: they would
/// cost several microseconds a request for nothing.
#[derive(Debug, Clone)]
pub struct Trace {
    span: Span,
    sampled: bool,
}

impl Trace {
    /// Under this span.
    pub fn new(span: Span, sampled: bool) -> Self {
        Self { span, sampled }
    }

    /// No span at all.
    pub fn none() -> Self {
        Self { span: Span::none(), sampled: false }
    }

    /// The span.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Whether it is exported.
    pub fn is_sampled(&self) -> bool {
        self.sampled
    }

    /// A span under this one. Where the trace is not exported, this one again, so that what is logged there still
    /// says which request it belongs to.
    #[must_use]
    pub fn child(&self, make: impl FnOnce(&Span) -> Span) -> Self {
        if self.sampled { Self { span: make(&self.span), sampled: true } } else { self.clone() }
    }

    /// Adds a field to a span of an exported trace.
    pub fn record<V: tracing::Value>(&self, field: &str, value: V) {
        if self.sampled {
            self.span.record(field, value);
        }
    }
}
