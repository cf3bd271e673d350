//! The queue between those who log and the thread that writes the lines, so that no request ever waits for
//! whoever reads the log, or does not.

use std::io::stderr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// The most lines that wait to be written; further ones are dropped. A megabyte or so: a reader who is a
/// moment late loses nothing.
const LINES_MAX: usize = 4096;

/// The longest wait for the last lines to be written at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The writing end of the log on standard error.
#[derive(Debug)]
pub(super) struct LogQueue {
    pub(super) writer: NonBlocking,
    guard: WorkerGuard,
}

impl LogQueue {
    /// Starts the thread that writes.
    pub(super) fn start() -> Self {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
        let (writer, guard) = builder.thread_name("log").finish(stderr());
        Self { writer, guard }
    }

    /// Returns the number of lines that were dropped because the queue was full.
    pub(super) fn dropped_lines(&self) -> ErrorCounter {
        self.writer.error_counter()
    }

    /// Writes the lines that wait, unless that takes too long.
    pub(super) fn flush(self) {
        let (flushed, done) = mpsc::channel();
        // On a thread of its own, since the guard prints where the queue is full, and standard output may be
        // closed, or be read by nobody either.
        thread::spawn(move || {
            drop(self.guard);
            // Whoever waited may have given up.
            let _late = flushed.send(());
        });
        let _in_time = done.recv_timeout(FLUSH_TIMEOUT);
    }
}
