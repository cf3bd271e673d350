//! The thread that owns a model and its stream: take, stack, run, reply.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use concord_models::{ModelError, Pixels, set_cpu_threads};
use opentelemetry::trace::TraceContextExt;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::limit::BatchLimit;
use super::queue::{Entry, Work};
use super::replica::Replica;
use super::seat::panic_text;
use super::text::TextEntry;
use super::{GenerateOutput, Seat, VoteReply};
use crate::metrics::Metrics;
use crate::trace::TRACE_TARGET;
use crate::voter::Wanted;
use concord_policy::{Cost, FailureKind, ModelOutput, VoteFailure};

/// How long a batch is put together, and what it may be computed with; how large it may be, the seat says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_delay: Duration,
    pub(super) cpu_threads: usize,
}

/// Why the thread ended.
#[derive(Debug)]
pub(super) enum Exit {
    /// Nothing will come any more.
    Closed,
    /// In a batch, whose images have been answered, after so many that did not.
    Panicked { message: String, batches: usize },
    /// The GPU refuses all further work of this process.
    DeviceLost(String),
}

/// What the thread has beside the model.
pub(super) struct Worker {
    pub(super) name: Arc<str>,
    pub(super) replica: Arc<Replica>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
}

impl Worker {
    /// Until there is nothing more to do, or a batch panics.
    pub(super) fn run(&self, seat: &mut Seat) -> Exit {
        set_cpu_threads(self.limits.cpu_threads);
        self.replica.set_down(false);
        let mut batches = 0;
        let exit = match catch_unwind(AssertUnwindSafe(|| self.work(seat, &mut batches))) {
            Ok(()) => Exit::Closed,
            Err(panic) => {
                self.replica.set_down(true);
                Exit::Panicked { message: panic_text(panic.as_ref()), batches }
            }
        };
        self.count_fallbacks(seat);
        match seat.check_device() {
            Ok(()) => exit,
            Err(error) => {
                self.replica.queue.clear();
                Exit::DeviceLost(error.to_string())
            }
        }
    }

    fn work(&self, seat: &mut Seat, batches: &mut usize) {
        loop {
            let on_dropped = |why: crate::ticket::Unwanted| {
                self.metrics.dropped.with_label_values(&[&*self.name, why.name()]).inc();
            };
            let max_batch = || self.batch_limit(&mut seat.limit);
            match self.replica.queue.take(max_batch, self.limits.max_delay, on_dropped) {
                Work::Batch(batch) => {
                    self.run_batch(seat, batch);
                    *batches += 1;
                }
                Work::Text(text) => self.write(seat, *text),
                Work::Job(job) => job(seat),
                Work::Closed => return,
            }
            self.count_fallbacks(seat);
        }
    }

    /// Says so once: they make everything slower and nothing wrong.
    fn count_fallbacks(&self, seat: &Seat) {
        let fallbacks = seat.model.take_graph_fallbacks();
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

    /// The most images that run together at this moment; tells when that has changed.
    fn batch_limit(&self, limit: &mut BatchLimit) -> usize {
        let before = limit.current();
        let now = limit.at(Instant::now());
        if now != before {
            self.metrics.set_batch_limit(&self.name, self.replica.index, now);
            let (model, replica) = (&*self.name, self.replica.index);
            tracing::info!(model, replica, batch = now, "batches of this size are tried again");
        }
        now
    }

    /// Answers every image of the batch, in their order: the halves one after the other where there is no memory for
    /// the whole.
    fn run_batch(&self, seat: &mut Seat, batch: Vec<Entry>) {
        // The next part is the last.
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            let Err((mut part, error)) = self.run_part(seat, part) else { continue };
            let first = part.len().div_ceil(2);
            self.lower_limit(&mut seat.limit, first, &error);
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
                "out of memory: no larger batches than this for a while"
            );
        }
    }

    /// Answers every image of the batch, by `Reply`'s drop where the forward panics; or gives it back where there is
    /// no memory for it and there may be for less.
    fn run_part(&self, seat: &Seat, batch: Vec<Entry>) -> Result<(), (Vec<Entry>, ModelError)> {
        let started = Instant::now();
        let span = self.batch_span(&batch);
        let images: Vec<&Pixels> = batch.iter().map(|entry| &entry.pixels).collect();
        let task = batch.first().map(|entry| entry.task).unwrap_or_default();
        let result = seat.forward(task, &images);
        let model = started.elapsed();
        let size = batch.len();
        if let Err(error) = &result
            && error.is_out_of_memory()
        {
            let replica = self.replica.index.to_string();
            self.metrics.out_of_memory.with_label_values(&[&*self.name, &*replica]).inc();
        }
        let outcomes: Vec<Result<ModelOutput, VoteFailure>> = match result {
            Ok((scores, device_ms)) if scores.len() == size => {
                span.record("gpu_ms", device_ms);
                scores.into_iter().map(Ok).collect()
            }
            Ok((scores, _)) => {
                let failure = VoteFailure::new(format!("{} answers to {size} images", scores.len()));
                vec![Err(failure); size]
            }
            Err(error) if error.is_out_of_memory() && size > 1 => return Err((batch, error)),
            Err(error) => vec![Err(VoteFailure::new(error.to_string())); size],
        };
        self.count(&batch, started, model);
        for (entry, outcome) in batch.into_iter().zip(outcomes) {
            let queue = started.saturating_duration_since(entry.queued);
            let cost = Cost { queue, preprocess: entry.preprocess, model };
            let Entry { place, wanted: Wanted { reply, trace, .. }, .. } = entry;
            // First, so that whoever has the answer finds a place for the next image.
            drop(place);
            reply.send(VoteReply { outcome, cost, batch: size, trace });
        }
        Ok(())
    }

    /// Writes a text, until it ends, or nobody reads it any more.
    fn write(&self, seat: &Seat, entry: TextEntry) {
        let TextEntry { request, pixels, place, ticket, trace, sink, queued } = entry;
        let started = Instant::now();
        let mut on_text = |text: &str| {
            if ticket.unwanted().is_some() { ControlFlow::Break(()) } else { sink.piece(text) }
        };
        let outcome = seat.write(&pixels, &request, &mut on_text);
        let (queue, model) = (started.saturating_duration_since(queued), started.elapsed());
        let outcome = match outcome {
            Ok(_) if ticket.unwanted().is_some() => Err(VoteFailure::expired()),
            Ok(generated) => {
                trace.record("tokens", generated.new_tokens);
                Ok(GenerateOutput { generated, queue, model })
            }
            Err(error @ ModelError::Unsupported(_)) => {
                Err(VoteFailure::of(FailureKind::Refused, error.to_string()))
            }
            Err(error) => Err(VoteFailure::new(error.to_string())),
        };
        drop(place);
        sink.done(outcome);
    }

    fn count(&self, batch: &[Entry], started: Instant, model: Duration) {
        let phase = |name: &str| self.metrics.phase_seconds.with_label_values(&[name]);
        self.metrics.forwards.with_label_values(&[&*self.name]).inc_by(batch.len() as u64);
        self.metrics.batch_size.with_label_values(&[&*self.name]).observe(batch.len() as f64);
        phase("model").observe(model.as_secs_f64());
        let queue = phase("queue");
        for entry in batch {
            queue.observe(started.saturating_duration_since(entry.queued).as_secs_f64());
        }
    }

    /// A trace of its own, linked to every request of the batch whose trace is exported; none where there is none.
    fn batch_span(&self, batch: &[Entry]) -> Span {
        let mut sampled = batch.iter().filter(|entry| entry.wanted.trace.is_sampled()).peekable();
        if sampled.peek().is_none() {
            return Span::none();
        }
        let span = tracing::info_span!(target: TRACE_TARGET, parent: None, "batch",
            concord.service = format_args!("concord-model-{}", self.name), replica = self.replica.index,
            device = self.replica.device.as_str(), batch_size = batch.len(), gpu_ms = tracing::field::Empty);
        for entry in sampled {
            span.add_link(entry.wanted.trace.span().context().span().span_context().clone());
        }
        span
    }
}
