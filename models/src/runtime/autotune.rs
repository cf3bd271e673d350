//! Autotuning: chooses the fastest of several ways to compute the same result, by measuring them while a
//! model warms up.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, TchError, Tensor};

use crate::libtorch::{Event, LibtorchError, Stream};

/// The number of runs before the timed ones: the first run makes plans, the second finds everything in place.
const WARM_RUNS: usize = 2;
/// The runs of a round. A round is timed as a whole, and the best round counts, since other models may use
/// the GPU in between.
const RUNS: usize = 5;
/// The number of rounds.
const ROUNDS: usize = 3;
/// The delay on the GPU, about half a millisecond, in which the CPU queues a round. Small shapes finish
/// before the next one is launched, but only the GPU's time is to be compared: it is all that is left of a
/// launch in a CUDA graph.
const HEAD_START_CYCLES: i64 = 1_000_000;
/// The share of the time of libtorch's own choice that another way must stay below: noise alone should not
/// make two processes differ.
const MIN_GAIN: f64 = 0.97;
/// The multiple of the best time in a round beyond which a way is not measured again.
const GIVE_UP_RATIO: f64 = 1.25;
/// The largest difference between results that were rounded at different points, as a share of the largest
/// value.
const ROUNDING: f64 = 2e-2;

thread_local! {
    /// Says whether unknown shapes are measured on this thread.
    static IS_WARMING_UP: Cell<bool> = const { Cell::new(false) };
}

/// Runs a function that will be recorded as a graph, and measures the shapes in it. Nothing else measures:
/// recorded shapes are few, and each of them is waited for once, while there is no end to the lengths of
/// texts that grow without fixed buffers.
pub(crate) fn warming_up<R>(run: impl FnOnce() -> R) -> R {
    let _before = WarmingUp(IS_WARMING_UP.replace(true));
    run()
}

/// A guard that restores the previous state of the flag when it is dropped.
struct WarmingUp(bool);

impl Drop for WarmingUp {
    fn drop(&mut self) {
        IS_WARMING_UP.set(self.0);
    }
}

/// The lock that a thread holds while it measures, so that no other disturbs it. It is separate from the lock
/// of a table, which every call takes. A thread that records a graph never takes it.
static MEASURING: Mutex<()> = Mutex::new(());

/// The choice for each shape; `None` leaves it to libtorch. There is one table for the process, behind a
/// lock: replicas on one GPU run on threads of their own and must return the same results for the same batch,
/// whichever of them measured.
#[derive(Debug)]
pub(crate) struct Autotuner<K, C> {
    chosen: Mutex<HashMap<K, Option<C>>>,
    /// The largest number of shapes in the table; later shapes run as libtorch chooses.
    shapes_max: usize,
}

/// The time of a run in microseconds for each way, libtorch's own first.
pub(crate) type Times<C> = Vec<(Option<C>, f64)>;

impl<K: Eq + Hash + Debug, C: Clone + Debug> Autotuner<K, C> {
    /// Creates an empty table for at most this many shapes.
    pub(crate) fn new(shapes_max: usize) -> Self {
        Self { chosen: Mutex::default(), shapes_max }
    }

    /// Locks the table of choices.
    pub(crate) fn chosen(&self) -> MutexGuard<'_, HashMap<K, Option<C>>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the choice for a shape, or `None` to leave it to libtorch. An unknown shape is measured if the
    /// thread is warming up.
    pub(crate) fn choose(
        &self,
        shape: K,
        device: usize,
        measure: impl FnOnce(&Stream) -> Result<Times<C>, LibtorchError>,
    ) -> Option<C> {
        let known = || {
            let table = self.chosen();
            let is_full = table.len() >= self.shapes_max;
            table.get(&shape).cloned().or_else(|| is_full.then_some(None))
        };
        if let Some(choice) = known() {
            return choice;
        }
        if !IS_WARMING_UP.get() {
            return None;
        }
        let stream = Stream::current(Device::Cuda(device)).ok()?;
        // An operation that is being recorded does not run, so it must not be waited for.
        if stream.is_capturing().unwrap_or(true) {
            return None;
        }
        let _measuring = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have measured the shape in the meantime.
        if let Some(choice) = known() {
            return choice;
        }
        match measure(&stream) {
            Ok(times) => {
                let choice = fastest(&times);
                tracing::debug!(?choice, times_us = ?times, ?shape, "measured");
                self.chosen().insert(shape, choice.clone());
                choice
            }
            Err(error) => {
                // The reason may be a lack of memory, so the next batch tries again.
                tracing::debug!(%error, ?shape, "could not be measured");
                None
            }
        }
    }
}

/// Measures libtorch's own choice, and those ways that return the same result.
pub(crate) fn measure<C: Clone + Debug>(
    ways: &[C],
    run: impl Fn(Option<&C>) -> Result<Tensor, LibtorchError>,
    stream: &Stream,
) -> Result<Times<C>, LibtorchError> {
    let expected = run(None)?;
    let mut times = vec![(None, f64::INFINITY)];
    for way in ways {
        match run(Some(way)).map(|result| agree(&result, &expected)) {
            Ok(Ok(true)) => times.push((Some(way.clone()), f64::INFINITY)),
            Ok(Ok(false)) => tracing::debug!(?way, "another result"),
            Ok(Err(error)) => tracing::debug!(%error, ?way, "could not be compared"),
            Err(error) => tracing::debug!(%error, ?way, "not in this way"),
        }
    }
    for (way, _) in &times {
        for _ in 1..WARM_RUNS {
            let _warm = run(way.as_ref());
        }
    }
    for _ in 0..ROUNDS {
        for (way, best_us) in &mut times {
            let time = time_us(|| run(way.as_ref()), stream);
            *best_us = best_us.min(time.unwrap_or(f64::INFINITY));
        }
        let best = times.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
        times.retain(|(way, time)| way.is_none() || *time <= best * GIVE_UP_RATIO);
    }
    Ok(times)
}

/// Returns the time of one run on the GPU in microseconds.
fn time_us(run: impl Fn() -> Result<Tensor, LibtorchError>, stream: &Stream) -> Result<f64, LibtorchError> {
    stream.spin(HEAD_START_CYCLES)?;
    let start = Event::record(stream)?;
    for _ in 0..RUNS {
        let _result = run()?;
    }
    let end = Event::record(stream)?;
    end.synchronize()?;
    Ok(start.elapsed_ms(&end)? * 1e3 / RUNS as f64)
}

/// Returns whether two results are the same but for rounding; they never are if there are values that are not
/// finite.
fn agree(ours: &Tensor, expected: &Tensor) -> Result<bool, TchError> {
    let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok(largest.is_finite() && ours.f_allclose(expected, 0.0, ROUNDING * largest, false)?)
}

/// Returns the fastest way. The first is libtorch's own choice, which stays unless another is clearly faster.
fn fastest<C: Clone>(times: &[(Option<C>, f64)]) -> Option<C> {
    let ((own, own_time), others) = times.split_first()?;
    let best = others.iter().min_by(|one, other| one.1.total_cmp(&other.1));
    best.filter(|(_, time)| *time < own_time * MIN_GAIN).map_or_else(|| own.clone(), |(way, _)| way.clone())
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::{agree, fastest};

    #[test]
    fn another_way_must_be_clearly_faster() {
        let failed = f64::INFINITY;
        for (times, expected) in [
            (vec![(None, 10.0)], None),
            (vec![(None, 10.0), (Some(1), 9.0)], Some(1)),
            (vec![(None, 10.0), (Some(1), 9.8)], None),
            (vec![(None, 10.0), (Some(1), 9.0), (Some(2), 8.0), (Some(3), failed)], Some(2)),
            (vec![(None, failed), (Some(1), failed)], None),
            (vec![(None, failed), (Some(1), 5.0)], Some(1)),
            (vec![(None, 5.0), (Some(1), f64::NAN)], None),
            (vec![], None),
        ] {
            assert_eq!(fastest::<i32>(&times), expected, "{times:?}");
        }
    }

    #[test]
    fn results_agree_but_for_rounding() {
        let expected = Tensor::from_slice(&[1.0f32, -2.0, 0.0]);
        for (ours, agrees) in [
            ([1.0f32, -2.0, 0.0], true),
            ([1.01, -1.98, 0.03], true),
            ([1.0, -2.0, 0.1], false),
            ([1.0, f32::NAN, 0.0], false),
        ] {
            assert_eq!(agree(&Tensor::from_slice(&ours), &expected).unwrap(), agrees, "{ours:?}");
        }
        for value in [f32::NAN, f32::INFINITY] {
            let no_numbers = Tensor::from_slice(&[value; 3]);
            assert!(!agree(&no_numbers, &no_numbers).unwrap(), "{value} says nothing");
        }
    }
}
