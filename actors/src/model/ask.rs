//! An image on its way to a model: made ready on a CPU thread, then queued.

use std::sync::Arc;
use std::time::Instant;

use concord_models::{RgbImage, TaskId};
use tracing::field::Empty;

use super::queue::Entry;
use super::{ModelHandle, Place, Reply};
use crate::Trace;
use crate::ticket::Ticket;
use crate::trace::TRACE_TARGET;

/// Asks a model for a vote; the place has been reserved. Dropping it answers.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) model: ModelHandle,
    pub(crate) task: TaskId,
    pub(crate) ticket: Arc<Ticket>,
    /// The stage's.
    pub(crate) trace: Trace,
    pub(crate) place: Place,
    pub(crate) reply: Reply,
}

impl Ask {
    /// There is no image, perhaps because nobody waits for it any more. Its drop answers.
    pub(crate) fn give_up(self) {
        self.count_if_unwanted();
    }

    /// Whether nobody wants the vote any more, which is counted.
    fn count_if_unwanted(&self) -> bool {
        let why = self.ticket.unwanted();
        if let Some(why) = why {
            let dropped = &self.model.metrics().dropped;
            dropped.with_label_values(&[&**self.model.name(), why.name()]).inc();
        }
        why.is_some()
    }

    /// Makes the image ready and queues it; the caller is a thread of the CPU pool.
    pub(crate) fn submit(self, image: &RgbImage) {
        let metrics = self.model.metrics();
        let name = self.model.name();
        let trace = self.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "vote",
                concord.service = format_args!("concord-model-{name}"), model = &**name, batch_size = Empty,
                queue_ms = Empty, preprocess_ms = Empty, gpu_ms = Empty, label = Empty, p = Empty, weight = Empty,
                error = Empty)
        });
        if self.count_if_unwanted() {
            return self.reply.expired();
        }
        let started = Instant::now();
        match self.model.preprocessor().apply(image) {
            Ok(pixels) => {
                let preprocess = started.elapsed();
                metrics.phase_seconds.with_label_values(&["preprocess"]).observe(preprocess.as_secs_f64());
                let Self { model, task, ticket, place, reply, .. } = self;
                let queued = Instant::now();
                model.queue().push(Entry { task, pixels, ticket, trace, place, reply, preprocess, queued });
            }
            Err(error) => self.reply.failed(error.to_string()),
        }
    }
}
