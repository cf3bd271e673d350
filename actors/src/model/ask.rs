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
        if let Some(why) = self.ticket.unwanted() {
            metrics.dropped.with_label_values(&[&**name, why.name()]).inc();
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
