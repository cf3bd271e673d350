//! A client for any model that votes: one on this machine, or one behind a server.

use std::sync::Arc;

use concord_models::{DecodedImage, Scale, TaskId, TaskSpec};
use concord_policy::VoteFailure;
use tracing::field::Empty;

use crate::cloud::{CloudHandle, CloudPermit};
use crate::metrics::Metrics;
use crate::model::{ModelHandle, Prepared, QueuePermit};
use crate::trace::TRACE_TARGET;
use crate::vote_request::VoteRequest;

/// A model made ready for a task.
#[derive(Debug, Clone)]
pub(crate) enum ModelClient {
    Local { model: ModelHandle, prepared: Arc<Prepared> },
    Cloud { cloud: CloudHandle, task: Arc<TaskSpec> },
}

/// A model with a permit for one image.
#[derive(Debug)]
enum Reservation {
    Local { model: ModelHandle, task: TaskId, permit: QueuePermit },
    Cloud { cloud: CloudHandle, task: Arc<TaskSpec>, permit: CloudPermit },
}

/// A vote whose permit has been reserved. Dropping it answers the request.
#[derive(Debug)]
pub(crate) struct ReservedVote {
    reservation: Reservation,
    request: VoteRequest,
}

impl ModelClient {
    /// Returns the model's name in the configuration.
    pub(crate) fn name(&self) -> &Arc<str> {
        match self {
            Self::Local { model, .. } => model.name(),
            Self::Cloud { cloud, .. } => cloud.name(),
        }
    }

    /// Returns whether the model can explain an answer in words.
    pub(crate) fn explains(&self) -> bool {
        matches!(self, Self::Local { model, .. } if model.takes_questions)
    }

    /// Returns the number of values of the feature that comes with its votes, where that is known.
    pub(crate) fn feature_length(&self) -> Option<usize> {
        match self {
            Self::Local { model, .. } => model.feature_length,
            Self::Cloud { .. } => None,
        }
    }

    /// Returns how many images wait for the model or run in it.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Local { model, .. } => model.depth(),
            Self::Cloud { cloud, .. } => cloud.depth(),
        }
    }

    /// Returns whether the model has no place for a new request. A model behind a server has none to wait in.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Local { model, .. } if model.is_full())
    }

    /// Reserves a permit for the request, or fails at once where the model has none left for it.
    pub(crate) fn reserve(&self, request: VoteRequest) -> Result<ReservedVote, VoteFailure> {
        let reservation = match self {
            Self::Local { model, prepared } => {
                let permit = model.reserve(request.stage > 0)?;
                Reservation::Local { model: model.clone(), task: prepared.id, permit }
            }
            Self::Cloud { cloud, task } => {
                Reservation::Cloud { cloud: cloud.clone(), task: Arc::clone(task), permit: cloud.reserve()? }
            }
        };
        Ok(ReservedVote { reservation, request })
    }
}

impl ReservedVote {
    /// Returns whether a JPEG may be decoded no larger than the model needs. For a server it is decoded
    /// whole.
    pub(crate) fn decodes_fast(&self) -> bool {
        matches!(&self.reservation, Reservation::Local { model, .. } if model.options.decodes_fast())
    }

    /// Returns the scale at which the model wants a JPEG of this upright width and height.
    pub(crate) fn scale(&self, size: [u32; 2]) -> Scale {
        match &self.reservation {
            Reservation::Local { model, .. } => model.scale(size),
            Reservation::Cloud { .. } => Scale::WHOLE,
        }
    }

    /// Fails the vote because there is no image, perhaps since nobody waits for it any more. Its drop
    /// answers.
    pub(crate) fn fail(self) {
        self.count_if_cancelled();
    }

    /// Returns whether the vote has been cancelled, and counts it if so.
    fn count_if_cancelled(&self) -> bool {
        let reason = self.request.deadline.cancel_reason();
        if let Some(reason) = reason {
            self.metrics().dropped.with_label_values(&[&**self.name(), reason.name()]).inc();
        }
        reason.is_some()
    }

    /// Preprocesses the image and hands it to the model; the caller is a thread of the CPU pool.
    pub(crate) fn submit(mut self, image: &DecodedImage) {
        let name = Arc::clone(self.name());
        let replica = match &self.reservation {
            Reservation::Local { permit, .. } => Some(Arc::clone(&permit.replica)),
            Reservation::Cloud { .. } => None,
        };
        let (index, device) = (replica.as_ref().map(|it| it.index), replica.as_ref().map(|it| &*it.device));
        self.request.trace = self.request.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "vote",
                concord.service = format_args!("concord-model-{name}"), model = &*name, replica = index,
                device, batch_size = Empty, queue_ms = Empty, preprocess_ms = Empty, gpu_ms = Empty, label = Empty, p = Empty, weight = Empty,
                error = Empty)
        });
        if self.count_if_cancelled() {
            return self.request.reply.expired();
        }
        match self.reservation {
            Reservation::Local { model, task, permit } => model.submit(task, image, permit, self.request),
            Reservation::Cloud { cloud, task, permit } => {
                cloud.submit(&task, &image.pixels, permit, self.request);
            }
        }
    }

    fn name(&self) -> &Arc<str> {
        match &self.reservation {
            Reservation::Local { model, .. } => model.name(),
            Reservation::Cloud { cloud, .. } => cloud.name(),
        }
    }

    fn metrics(&self) -> &Metrics {
        match &self.reservation {
            Reservation::Local { model, .. } => model.metrics(),
            Reservation::Cloud { cloud, .. } => cloud.metrics(),
        }
    }
}
