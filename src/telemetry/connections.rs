//! Events of actix about connections that anybody can cause, or that mean nothing: they are counted or left
//! out, instead of being logged one by one.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter};

/// The module of actix that reads requests. It logs each that it cannot parse as an error.
pub(super) const READER: &str = "actix_http::h1::dispatcher";
const MALFORMED: &str = "stream error: request parse error";

/// The module of actix that accepts connections. At shutdown it finds that its socket does not listen any
/// more.
const ACCEPTOR: &str = "actix_server::accept";
const NOT_LISTENING: &str = "Error accepting connection: Invalid argument";

/// The number of requests that could not be parsed, as a layer that counts their events.
#[derive(Debug, Clone, Default)]
pub(super) struct MalformedRequests(Arc<AtomicU64>);

impl MalformedRequests {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for MalformedRequests {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if message(event).starts_with(MALFORMED) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The filter that leaves out the error of every clean shutdown.
#[derive(Debug)]
pub(super) struct WithoutShutdownError;

impl<S> Filter<S> for WithoutShutdownError {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        event.metadata().target() != ACCEPTOR || !message(event).starts_with(NOT_LISTENING)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }
}

fn message(event: &Event<'_>) -> String {
    let mut message = Message(String::new());
    event.record(&mut message);
    message.0
}

/// The text of an event.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _always_ok = write!(self.0, "{value:?}");
        }
    }
}
