//! Repeats a workload, and computes statistics of its times.

use std::time::{Duration, Instant};

use concord_models::ModelError;
use concord_models::libtorch::{Event, Stream};
use serde::Serialize;

use super::workload::{WorkOutput, Workload};
use crate::commands::contained;

/// The number of iterations, or the time that they may take in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) iterations: Option<usize>,
    pub(super) seconds: f64,
    pub(super) warmup: usize,
}

/// The bounds where no number of iterations is given: fewer say nothing, more are not needed.
const ITERATIONS_MIN: usize = 5;
const ITERATIONS_MAX: usize = 10_000;

/// Statistics of the milliseconds of one iteration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Times {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) mean: f64,
    pub(super) min: f64,
}

impl Times {
    /// Returns the statistics of at least one time, and `None` for none.
    fn of(mut milliseconds: Vec<f64>) -> Option<Self> {
        milliseconds.sort_by(f64::total_cmp);
        let count = milliseconds.len();
        // The nearest-rank percentile: the smallest time that so large a share does not exceed.
        let rank =
            |share: f64| milliseconds.get((share * count as f64).ceil().max(1.0) as usize - 1).copied();
        Some(Self {
            p50: rank(0.50)?,
            p99: rank(0.99)?,
            mean: milliseconds.iter().sum::<f64>() / count as f64,
            min: *milliseconds.first()?,
        })
    }
}

/// The measured times of one workload.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Timing {
    pub(super) iterations: usize,
    /// The time until the caller has the result.
    pub(super) latency: Times,
    /// The time between two events of the stream; `None` on the CPU.
    pub(super) device: Option<Times>,
    pub(super) images_per_s: f64,
    pub(super) prompt_tokens: Option<usize>,
    pub(super) new_tokens: Option<usize>,
}

/// Measures a workload on `stream`, which is this thread's current one.
///
/// # Errors
/// Returns the reason if an iteration fails, or returns values that are not finite.
pub(super) fn measure(
    stream: &Stream,
    limits: &Limits,
    workload: &Workload,
    on_gpu: bool,
) -> Result<Timing, String> {
    contained(|| run(stream, limits, workload, on_gpu)).and_then(|timing| timing)
}

fn run(
    stream: &Stream,
    limits: &Limits,
    workload: &Workload,
    on_gpu: bool,
) -> Result<Result<Timing, String>, ModelError> {
    let output = warm_up(stream, limits, workload)?;
    if !output.is_finite()? {
        return Ok(Err("returns values that are not finite".to_owned()));
    }
    let (mut latencies, mut on_device) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    while wants_more(limits, latencies.len(), begun.elapsed()) {
        let start = Instant::now();
        let before = Event::record(stream)?;
        let output = (workload.run)()?;
        let after = Event::record(stream)?;
        stream.synchronize()?;
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
        on_device.push(before.elapsed_ms(&after)?);
        drop(output);
    }
    let iterations = latencies.len();
    let Some(latency) = Times::of(latencies) else { return Ok(Err("no iteration ran".to_owned())) };
    Ok(Ok(Timing {
        iterations,
        latency,
        device: if on_gpu { Times::of(on_device) } else { None },
        images_per_s: workload.images as f64 * 1e3 / latency.mean,
        prompt_tokens: output.prompt_tokens,
        new_tokens: output.new_tokens,
    }))
}

/// Runs the workload at least once, and for no longer than it will be measured.
pub(super) fn warm_up(
    stream: &Stream,
    limits: &Limits,
    workload: &Workload,
) -> Result<WorkOutput, ModelError> {
    let begun = Instant::now();
    let mut output = (workload.run)()?;
    for _ in 1..limits.warmup {
        if limits.iterations.is_none() && begun.elapsed().as_secs_f64() > limits.seconds {
            break;
        }
        output = (workload.run)()?;
    }
    stream.synchronize()?;
    Ok(output)
}

fn wants_more(limits: &Limits, ran: usize, elapsed: Duration) -> bool {
    match limits.iterations {
        Some(iterations) => ran < iterations,
        None => ran < ITERATIONS_MIN || (ran < ITERATIONS_MAX && elapsed.as_secs_f64() < limits.seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::Times;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times = Times::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((times.p50, times.p99, times.mean, times.min), (50.0, 99.0, 50.5, 1.0));
        let one = Times::of(vec![7.0]).unwrap();
        assert_eq!((one.p50, one.p99, one.mean, one.min), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Times::of(Vec::new()), None);
    }
}
