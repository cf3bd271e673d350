//! The metrics of a process, for Prometheus. Labels are bounded: names from the configuration, and the words
//! of enums. Knows nothing of what is measured.

use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{
    CounterVec, Error, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};

/// The buckets of durations: from a cache hit, in tens of microseconds, to the longest timeouts.
const SECONDS: [f64; 16] =
    [5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const BATCH_SIZES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// A phase of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The lookup in the cache.
    CacheGet,
    /// The decoding from encoded bytes to pixels.
    Decode,
    /// The conversion from pixels to the model's input.
    Preprocess,
    /// The wait for the model, once the input is ready.
    Queue,
    /// The time in the model.
    Model,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::CacheGet => "cache_get",
            Self::Decode => "decode",
            Self::Preprocess => "preprocess",
            Self::Queue => "queue",
            Self::Model => "model",
        }
    }
}

/// An error of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CacheError {
    /// The server did not answer in time.
    Timeout,
    /// There is no connection, or the server answered with an error.
    Refused,
    /// The circuit is open: the server was not asked.
    Breaker,
    /// The value is none of Concord's, or damaged, or sealed with another secret.
    Corrupt,
    /// The value is one of Concord's, but does not fit the policy that asks.
    Mismatch,
    /// Too many writes were in flight, so the value was not kept.
    WriteLimit,
}

impl CacheError {
    /// Returns its name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Breaker => "breaker",
            Self::Corrupt => "corrupt",
            Self::Mismatch => "mismatch",
            Self::WriteLimit => "write_limit",
        }
    }
}

/// The outcome of a change of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The new configuration is in force.
    Applied,
    /// The new configuration is faulty, and the old one stays in force.
    Rejected,
}

impl ReloadOutcome {
    fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Rejected => "rejected",
        }
    }
}

/// Every metric of a process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Requests by `task`, the `stage` that was reached (0: none) and `outcome`.
    pub requests: IntCounterVec,
    /// The time from the request's arrival at its router to the answer, by `task` and `cache` outcome.
    pub request_seconds: HistogramVec,
    /// Texts by `model` and `outcome`: `ok`, `abandoned` (the reader left before the end), or why there was
    /// none.
    pub generate_requests: IntCounterVec,
    /// The time from the request's arrival at its router to the end of the text, by `model`, for texts that
    /// were completed.
    pub generate_request_seconds: HistogramVec,
    /// The time of each `phase` (`Phase`).
    pub phase_seconds: HistogramVec,
    /// Requests that are being answered.
    pub in_flight: IntGauge,
    /// Lookups by `kind` (`verdict`, `vote`) and `outcome` (`hit`, `miss`).
    pub cache_lookups: IntCounterVec,
    /// Errors of the cache by `reason` (`CacheError`); each is a miss, or a value that was not kept.
    pub cache_errors: IntCounterVec,
    /// Images that ran through a `model`.
    pub forwards: IntCounterVec,
    /// Images in a batch, by `model`.
    pub batch_size: HistogramVec,
    /// The most images that a `replica` of a `model` runs together at this moment.
    pub batch_limit: IntGaugeVec,
    /// Batches that a `replica` of a `model` had no memory for.
    pub out_of_memory: IntCounterVec,
    /// Estimated before loading: what the replicas of a `model` take of a `device`, by `part` (`parameters`,
    /// `activations`).
    pub model_memory: IntGaugeVec,
    /// Images that wait for a `model` or run in it, all replicas together.
    pub queue_depth: IntGaugeVec,
    /// Images dropped before they ran, by `model` and `reason` (`abandoned`, `expired`).
    pub dropped: IntCounterVec,
    /// Votes by `model` and `outcome` (`ok`, or the kind of failure).
    pub votes: IntCounterVec,
    /// Learned parts of a `task` that could not be used, by `part` (`weights`, `correctness`, `min_weight`)
    /// and `reason`; votes that were fused again are counted again.
    pub learned_fallbacks: IntCounterVec,
    /// The cost of a `model` behind a server in US dollars.
    pub cloud_usd: CounterVec,
    /// Forwards of a `model` that ran without the CUDA graph that they should have had.
    pub graph_fallbacks: IntCounterVec,
    /// Restarts of the threads of a `model` after a panic.
    pub restarts: IntCounterVec,
    /// Changes of the configuration by `outcome` ([`ReloadOutcome`]).
    pub config_reloads: IntCounterVec,
    /// The number of faults in the current configuration file; 0 while it is in use. The log names them:
    /// their text and location are unbounded, and so cannot be labels.
    pub config_faults: IntGauge,
    /// 1 while requests are taken.
    pub ready: Gauge,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// When two have the same name.
    pub fn new() -> Result<Self, Error> {
        let registry = Registry::new_custom(Some("concord".to_owned()), None)?;
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            registered(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histograms = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            registered(&registry, HistogramVec::new(options, labels)?)
        };
        Ok(Self {
            requests: counters(
                "requests_total",
                "Requests by task, stage reached and outcome.",
                &["task", "stage", "outcome"],
            )?,
            request_seconds: histograms(
                "request_seconds",
                "From a request's arrival at its router to the answer.",
                &["task", "cache"],
                &SECONDS,
            )?,
            generate_requests: counters(
                "generate_requests_total",
                "Requests for text by model and outcome.",
                &["model", "outcome"],
            )?,
            generate_request_seconds: histograms(
                "generate_request_seconds",
                "From a request's arrival at its router to the end of the text.",
                &["model"],
                &SECONDS,
            )?,
            phase_seconds: histograms("phase_seconds", "Time by phase.", &["phase"], &SECONDS)?,
            in_flight: registered(
                &registry,
                IntGauge::new("in_flight_requests", "Requests that are being answered.")?,
            )?,
            cache_lookups: counters(
                "cache_lookups_total",
                "Lookups of verdicts and votes.",
                &["kind", "outcome"],
            )?,
            cache_errors: counters("cache_errors_total", "Errors of the cache.", &["reason"])?,
            forwards: counters("forwards_total", "Images that ran through a model.", &["model"])?,
            batch_size: histograms("batch_size", "Images in a batch.", &["model"], &BATCH_SIZES)?,
            batch_limit: gauges(
                "batch_limit",
                "The most images that a replica runs together at this moment.",
                &["model", "replica"],
            )?,
            out_of_memory: counters(
                "out_of_memory_total",
                "Batches that a replica had no memory for.",
                &["model", "replica"],
            )?,
            model_memory: gauges(
                "model_memory_estimated_bytes",
                "Memory that the replicas of a model were estimated to take of a device before they were loaded.",
                &["model", "device", "part"],
            )?,
            queue_depth: gauges("queue_depth", "Images that wait for a model or run in it.", &["model"])?,
            dropped: counters(
                "dropped_total",
                "Images dropped before they ran, because nobody waited for them any more.",
                &["model", "reason"],
            )?,
            votes: counters("votes_total", "Votes by model and outcome.", &["model", "outcome"])?,
            learned_fallbacks: counters(
                "learned_fallbacks_total",
                "Learned parts that could not be used, so that the configured values counted.",
                &["task", "part", "reason"],
            )?,
            cloud_usd: registered(
                &registry,
                CounterVec::new(
                    Opts::new("cloud_usd_total", "Cost of models behind servers in US dollars."),
                    &["model"],
                )?,
            )?,
            graph_fallbacks: counters(
                "graph_fallbacks_total",
                "Forwards of a model that ran without the CUDA graph that they should have had.",
                &["model"],
            )?,
            restarts: counters(
                "model_restarts_total",
                "Restarts of a model's threads after a panic.",
                &["model"],
            )?,
            config_reloads: counters(
                "config_reloads_total",
                "Changes of the configuration by outcome.",
                &["outcome"],
            )?,
            config_faults: registered(
                &registry,
                IntGauge::new("config_faults", "Faults of the configuration file as it is now.")?,
            )?,
            ready: registered(&registry, Gauge::new("ready", "1 while requests are taken.")?)?,
            registry,
        })
    }

    /// Registers a counter whose value is kept elsewhere: `read` is called whenever the metrics are read.
    ///
    /// # Errors
    /// When there is a metric of that name.
    pub fn register_counter(
        &self,
        name: &str,
        help: &str,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let opts = Opts::new(name, help);
        let described = IntCounter::with_opts(opts.clone())?;
        self.registry.register(Box::new(ReadCounter { described, opts, read }))
    }

    /// Adds a duration to a phase.
    pub(crate) fn observe(&self, phase: Phase, duration: Duration) {
        self.phase_seconds.with_label_values(&[phase.name()]).observe(duration.as_secs_f64());
    }

    /// Counts a change of the configuration.
    pub fn count_reload(&self, outcome: ReloadOutcome) {
        self.config_reloads.with_label_values(&[outcome.name()]).inc();
    }

    /// Sets how many images a replica runs together.
    pub(crate) fn set_batch_limit(&self, model: &str, replica: usize, limit: usize) {
        let gauge = self.batch_limit.with_label_values(&[model, &*replica.to_string()]);
        gauge.set(i64::try_from(limit).unwrap_or(i64::MAX));
    }

    /// Returns the metrics in the text format of Prometheus.
    ///
    /// # Errors
    /// When a metric cannot be written.
    pub fn text(&self) -> Result<String, Error> {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A counter whose value is kept elsewhere.
struct ReadCounter<F> {
    /// The description, in the form of a counter that never counts.
    described: IntCounter,
    opts: Opts,
    read: F,
}

impl<F: Fn() -> u64 + Send + Sync> Collector for ReadCounter<F> {
    fn desc(&self) -> Vec<&Desc> {
        self.described.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        // Never an error: the name and the help were valid when it was registered.
        let Ok(counter) = IntCounter::with_opts(self.opts.clone()) else { return Vec::new() };
        counter.inc_by((self.read)());
        counter.collect()
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
