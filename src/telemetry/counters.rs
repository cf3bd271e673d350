//! The counters of what the log of a server leaves out.

use concord_actors::Metrics;
use tracing_appender::non_blocking::ErrorCounter;

use super::connections::MalformedRequests;

/// The numbers of events that are not in the log. Without a log, which tests have none of, nothing is
/// counted.
#[derive(Debug, Clone, Default)]
pub struct LogCounters(Option<(ErrorCounter, MalformedRequests)>);

impl LogCounters {
    pub(super) fn new(dropped_lines: ErrorCounter, malformed: MalformedRequests) -> Self {
        Self(Some((dropped_lines, malformed)))
    }

    /// Adds them to the metrics of a server.
    ///
    /// # Errors
    /// Returns an error if the metrics have counters of these names.
    pub fn register(&self, metrics: &Metrics) -> Result<(), prometheus::Error> {
        let (dropped_lines, malformed) = self.0.clone().unzip();
        metrics.register_counter(
            "log_lines_dropped_total",
            "Lines that were not written because nobody read the log fast enough.",
            move || dropped_lines.as_ref().map_or(0, |lines| lines.dropped_lines() as u64),
        )?;
        metrics.register_counter(
            "malformed_requests_total",
            "Requests that were refused because they are not HTTP.",
            move || malformed.as_ref().map_or(0, MalformedRequests::count),
        )
    }
}
