//! Whoever can be asked for a vote: a model on this machine, or one behind a server.

use std::sync::Arc;

use concord_models::{DecodedImage, Scale, TaskId, TaskSpec};
use tracing::field::Empty;

use crate::Trace;
use crate::cloud::{CloudHandle, CloudPlace};
use crate::metrics::Metrics;
use crate::model::{ModelHandle, Place, Prepared, Reply};
use crate::ticket::Ticket;
use crate::trace::TRACE_TARGET;
use concord_policy::VoteFailure;

/// A model made ready for a task.
#[derive(Debug, Clone)]
pub(crate) enum Voter {
    Local { model: ModelHandle, prepared: Arc<Prepared> },
    Cloud { cloud: CloudHandle, task: Arc<TaskSpec> },
}

/// A voter with a place for one image.
#[derive(Debug)]
enum Reserved {
    Local { model: ModelHandle, task: TaskId, place: Place },
    Cloud { cloud: CloudHandle, task: Arc<TaskSpec>, place: CloudPlace },
}

/// Asks for a vote; the place has been reserved. Dropping it answers.
#[derive(Debug)]
pub(crate) struct Ask {
    voter: Reserved,
    wanted: Wanted,
}

/// For whom a vote is given.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) ticket: Arc<Ticket>,
    /// The stage's span, and from the voter on the vote's.
    pub(crate) trace: Trace,
    pub(crate) reply: Reply,
}

impl Voter {
    /// The model's name in the configuration.
    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Self::Local { model, .. } => model.name(),
            Self::Cloud { cloud, .. } => cloud.name(),
        }
    }

    /// Whether it can say in words why.
    pub(crate) fn explains(&self) -> bool {
        matches!(self, Self::Local { model, .. } if model.takes_questions)
    }

    /// How many images wait for it or run in it.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Local { model, .. } => model.depth(),
            Self::Cloud { cloud, .. } => cloud.depth(),
        }
    }

    /// Takes a place and prepares the question, or says at once that there is none.
    pub(crate) fn ask(&self, wanted: Wanted) -> Result<Ask, VoteFailure> {
        let voter = match self {
            Self::Local { model, prepared } => {
                Reserved::Local { model: model.clone(), task: prepared.id, place: model.reserve()? }
            }
            Self::Cloud { cloud, task } => {
                Reserved::Cloud { cloud: cloud.clone(), task: Arc::clone(task), place: cloud.reserve()? }
            }
        };
        Ok(Ask { voter, wanted })
    }
}

impl Ask {
    /// Whether a JPEG may be decoded no larger than the model needs. What goes to a server is made of the whole.
    pub(crate) fn decodes_fast(&self) -> bool {
        matches!(&self.voter, Reserved::Local { model, .. } if model.options.decodes_fast())
    }

    /// The scale at which its model wants a JPEG of this upright width and height.
    pub(crate) fn scale(&self, size: [u32; 2]) -> Scale {
        match &self.voter {
            Reserved::Local { model, .. } => model.scale(size),
            Reserved::Cloud { .. } => Scale::WHOLE,
        }
    }

    /// There is no image, perhaps because nobody waits for it any more. Its drop answers.
    pub(crate) fn give_up(self) {
        self.count_if_unwanted();
    }

    /// Whether nobody wants the vote any more, which is counted.
    fn count_if_unwanted(&self) -> bool {
        let why = self.wanted.ticket.unwanted();
        if let Some(why) = why {
            self.metrics().dropped.with_label_values(&[&**self.name(), why.name()]).inc();
        }
        why.is_some()
    }

    /// Makes the image ready and hands it over; the caller is a thread of the CPU pool.
    pub(crate) fn submit(mut self, picture: &DecodedImage) {
        let name = Arc::clone(self.name());
        let replica = match &self.voter {
            Reserved::Local { place, .. } => Some(Arc::clone(&place.replica)),
            Reserved::Cloud { .. } => None,
        };
        let (index, device) = (replica.as_ref().map(|it| it.index), replica.as_ref().map(|it| &*it.device));
        self.wanted.trace = self.wanted.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "vote",
                concord.service = format_args!("concord-model-{name}"), model = &*name, replica = index,
                device, batch_size = Empty, queue_ms = Empty, preprocess_ms = Empty, gpu_ms = Empty, label = Empty, p = Empty, weight = Empty,
                error = Empty)
        });
        if self.count_if_unwanted() {
            return self.wanted.reply.expired();
        }
        match self.voter {
            Reserved::Local { model, task, place } => model.submit(task, picture, place, self.wanted),
            Reserved::Cloud { cloud, task, place } => {
                cloud.submit(&task, &picture.pixels, place, self.wanted);
            }
        }
    }

    fn name(&self) -> &Arc<str> {
        match &self.voter {
            Reserved::Local { model, .. } => model.name(),
            Reserved::Cloud { cloud, .. } => cloud.name(),
        }
    }

    fn metrics(&self) -> &Metrics {
        match &self.voter {
            Reserved::Local { model, .. } => model.metrics(),
            Reserved::Cloud { cloud, .. } => cloud.metrics(),
        }
    }
}
