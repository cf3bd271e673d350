//! The thread that owns a model and its stream: take, stack, run, reply.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concord_models::{ModelError, Pixels, set_cpu_threads};
use concord_policy::{Cost, FailureKind, ModelOutput, VoteFailure};
use opentelemetry::trace::TraceContextExt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::limit::BatchLimit;
use super::loaded_replica::{LoadedReplica, panic_text};
use super::queue::{Entry, Work};
use super::replica::Replica;
use super::text::{GenerateOutput, TextEntry};
use crate::deadline::CancelReason;
use crate::metrics::{Metrics, Phase};
use crate::trace::TRACE_TARGET;
use crate::vote_reply::VoteReply;
use crate::vote_request::VoteRequest;

/// The limits of a worker: how long it waits for a batch to fill, and how many threads it computes with. The
/// size of a batch is limited by the replica's `BatchLimit`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_delay: Duration,
    pub(super) cpu_threads: usize,
}

/// The reason why the thread ended.
#[derive(Debug)]
pub(super) enum Exit {
    /// The queue is closed and empty.
    Closed,
    /// A batch panicked, after `batches` that did not; its images have been answered.
    Panicked { message: String, batches: usize },
    /// The GPU refuses all further work of this process.
    DeviceLost(String),
}

/// Everything that the thread has beside the model.
pub(super) struct Worker {
    pub(super) name: Arc<str>,
    pub(super) replica: Arc<Replica>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
}

impl Worker {
    /// Runs until the queue is closed and empty, or a batch panics.
    pub(super) fn run(&self, loaded: &mut LoadedReplica) -> Exit {
        set_cpu_threads(self.limits.cpu_threads);
        self.replica.set_down(false);
        let mut batches = 0;
        let exit = match catch_unwind(AssertUnwindSafe(|| self.work(loaded, &mut batches))) {
            Ok(()) => Exit::Closed,
            Err(panic) => {
                self.replica.set_down(true);
                Exit::Panicked { message: panic_text(panic.as_ref()), batches }
            }
        };
        self.count_fallbacks(loaded);
        match loaded.check_device() {
            Ok(()) => exit,
            Err(error) => {
                self.replica.queue.clear();
                Exit::DeviceLost(error.to_string())
            }
        }
    }

    fn work(&self, loaded: &mut LoadedReplica, batches: &mut usize) {
        loop {
            let on_dropped = |reason: CancelReason| {
                self.metrics.dropped.with_label_values(&[&*self.name, reason.name()]).inc();
            };
            let max_batch = || self.batch_limit(&mut loaded.limit);
            match self.replica.queue.take(max_batch, self.limits.max_delay, on_dropped) {
                Work::Batch(batch) => {
                    self.run_batch(loaded, batch);
                    *batches += 1;
                }
                Work::Text(text) => self.generate(loaded, *text),
                Work::Job(job) => job(loaded),
                Work::Closed => return,
            }
            self.count_fallbacks(loaded);
        }
    }

    /// Counts the forwards without their CUDA graph and warns of the first: they are slower, not wrong.
    fn count_fallbacks(&self, loaded: &LoadedReplica) {
        let fallbacks = loaded.model.take_graph_fallbacks();
        if fallbacks == 0 {
            return;
        }
        let counter = self.metrics.graph_fallbacks.with_label_values(&[&*self.name]);
        if counter.get() == 0 {
            let (model, replica, device) = (&*self.name, self.replica.index, self.replica.device.as_str());
            tracing::warn!(
                model,
                replica,
                device,
                "runs without CUDA graphs, and slower: concord_graph_fallbacks_total counts the forwards"
            );
        }
        counter.inc_by(fallbacks);
    }

    /// Returns the most images that run together at this moment, and reports when that has changed.
    fn batch_limit(&self, limit: &mut BatchLimit) -> usize {
        let before = limit.current();
        let now = limit.at(Instant::now());
        if now != before {
            self.metrics.set_batch_limit(&self.name, self.replica.index, now);
            let (model, replica) = (&*self.name, self.replica.index);
            tracing::info!(model, replica, batch = now, "trying larger batches again");
        }
        now
    }

    /// Answers every image of the batch, in order: the halves one after the other where there is no memory
    /// for the whole.
    fn run_batch(&self, loaded: &mut LoadedReplica, batch: Vec<Entry>) {
        // A stack: the part to run next is the last.
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let Err((mut part, error)) = self.run_part(loaded, part) else { continue };
            let first = part.len().div_ceil(2);
            self.lower_limit(&mut loaded.limit, first, &error);
            let second = part.split_off(first);
            parts.extend([second, part]);
        }
    }

    fn lower_limit(&self, limit: &mut BatchLimit, batch: usize, error: &ModelError) {
        let before = limit.current();
        limit.lower(batch, Instant::now());
        let now = limit.current();
        if now != before {
            self.metrics.set_batch_limit(&self.name, self.replica.index, now);
            let (model, replica, device) = (&*self.name, self.replica.index, self.replica.device.as_str());
            tracing::warn!(
                model,
                replica,
                device,
                %error,
                batch = now,
                "out of memory: the batch size is limited to this for a while"
            );
        }
    }

    /// Answers every image of the batch, by `Reply`'s drop where the forward panics; or returns the batch
    /// where there is no memory for it but may be for a smaller one.
    fn run_part(&self, loaded: &LoadedReplica, batch: Vec<Entry>) -> Result<(), (Vec<Entry>, ModelError)> {
        let started = Instant::now();
        let span = self.batch_span(&batch);
        let images: Vec<&Pixels> = batch.iter().map(|entry| &entry.pixels).collect();
        let task = batch.first().map(|entry| entry.task).unwrap_or_default();
        let result = loaded.forward(task, &images);
        let model = started.elapsed();
        let size = batch.len();
        if let Err(error) = &result
            && error.is_out_of_memory()
        {
            let replica = self.replica.index.to_string();
            self.metrics.out_of_memory.with_label_values(&[&*self.name, &*replica]).inc();
        }
        let outcomes: Vec<Result<ModelOutput, VoteFailure>> = match result {
            Ok((outputs, device_ms)) if outputs.len() == size => {
                span.record("gpu_ms", device_ms);
                outputs.into_iter().map(Ok).collect()
            }
            Ok((outputs, _)) => {
                let failure = VoteFailure::new(format!("{} answers to {size} images", outputs.len()));
                vec![Err(failure); size]
            }
            Err(error) if error.is_out_of_memory() && size > 1 => return Err((batch, error)),
            Err(error) => vec![Err(VoteFailure::new(error.to_string())); size],
        };
        self.count(&batch, started, model);
        for (entry, outcome) in batch.into_iter().zip(outcomes) {
            let queue = started.saturating_duration_since(entry.queued);
            let cost = Cost { queue, preprocess: entry.preprocess, model };
            let Entry { permit, request: VoteRequest { reply, trace, .. }, .. } = entry;
            // Before the reply, so that whoever gets it finds a permit for the next image.
            drop(permit);
            reply.send(VoteReply { outcome, cost, batch: size, trace });
        }
        Ok(())
    }

    /// Generates a text until it ends, or nobody reads it any more.
    fn generate(&self, loaded: &LoadedReplica, entry: TextEntry) {
        let TextEntry { request, pixels, permit, deadline, trace, sink, queued } = entry;
        let started = Instant::now();
        let mut on_text = |text: &str| {
            if deadline.cancel_reason().is_some() { ControlFlow::Break(()) } else { sink.piece(text) }
        };
        let outcome = loaded.generate(&pixels, &request, &mut on_text);
        let (queue, model) = (started.saturating_duration_since(queued), started.elapsed());
        let outcome = match outcome {
            Ok(_) if deadline.cancel_reason().is_some() => Err(VoteFailure::expired()),
            Ok(generated) => {
                trace.record("tokens", generated.new_tokens);
                Ok(GenerateOutput { generated, queue, model })
            }
            Err(error @ ModelError::Unsupported(_)) => {
                Err(VoteFailure::of(FailureKind::Refused, error.to_string()))
            }
            Err(error) => Err(VoteFailure::new(error.to_string())),
        };
        drop(permit);
        sink.done(outcome);
    }

    fn count(&self, batch: &[Entry], started: Instant, model: Duration) {
        self.metrics.forwards.with_label_values(&[&*self.name]).inc_by(batch.len() as u64);
        self.metrics.batch_size.with_label_values(&[&*self.name]).observe(batch.len() as f64);
        self.metrics.observe(Phase::Model, model);
        for entry in batch {
            self.metrics.observe(Phase::Queue, started.saturating_duration_since(entry.queued));
        }
    }

    /// Returns a span in a trace of its own, linked to every request of the batch whose trace is exported; no
    /// span where there is none.
    fn batch_span(&self, batch: &[Entry]) -> Span {
        let mut sampled = batch.iter().filter(|entry| entry.request.trace.is_sampled()).peekable();
        if sampled.peek().is_none() {
            return Span::none();
        }
        let span = tracing::info_span!(target: TRACE_TARGET, parent: None, "batch",
            concord.service = format_args!("concord-model-{}", self.name), replica = self.replica.index,
            device = self.replica.device.as_str(), batch_size = batch.len(), gpu_ms = tracing::field::Empty);
        for entry in sampled {
            span.add_link(entry.request.trace.span().context().span().span_context().clone());
        }
        span
    }
}
