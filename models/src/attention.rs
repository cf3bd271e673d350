//! softmax(q kᵀ / √d) v by the back end of libtorch that is fastest for a shape, measured while a model warms up.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use crate::libtorch::{Event, LibtorchError, Stream, cudnn_attention, efficient_attention, flash_attention};

/// Shapes that are measured, some 10 ms each; later ones run as libtorch chooses. Warm-up needs some dozens a model.
const SHAPES_MAX: usize = 512;
/// cuDNN makes its plan in the first; the second finds everything in place.
const WARM_RUNS: usize = 2;
/// A round of runs is timed as a whole, and the best round counts, since other models may use the GPU in between.
const RUNS: usize = 5;
const ROUNDS: usize = 3;
/// Half a millisecond, in which the CPU queues a round: small shapes are done sooner than the next is launched, and
/// what is to be compared is the GPU's time, all that is left of a launch in a CUDA graph.
const HEAD_START_CYCLES: i64 = 1_000_000;
/// How much of libtorch's own choice's time another may take: noise alone should not make two processes differ.
const WORTHWHILE: f64 = 0.97;
/// Of the largest value: how far results may lie apart that were rounded in other places.
const ROUNDING: f64 = 2e-2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionBackend {
    Cudnn,
    Flash,
    Efficient,
}

const BACKENDS: [AttentionBackend; 3] =
    [AttentionBackend::Cudnn, AttentionBackend::Flash, AttentionBackend::Efficient];

/// The choices so far; `None` is what libtorch chooses by itself. One table for the process, behind a lock: replicas on
/// one GPU run on threads of their own and must give the same results for the same batch, whoever measured.
static CHOSEN: LazyLock<Mutex<HashMap<Shape, Option<AttentionBackend>>>> = LazyLock::new(Mutex::default);

/// Held while one thread measures, so that another does not disturb it. Not the table's, which is for every call. A
/// thread that records a graph never takes it.
static MEASURING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether shapes that are not known yet are measured on this thread.
    static IS_WARMING_UP: Cell<bool> = const { Cell::new(false) };
}

/// Runs what will be recorded as a graph, and measures the shapes in it. Nothing else does: a request is not to wait for
/// that, and the lengths of texts that grow without fixed buffers would have no end.
pub(crate) fn warming_up<R>(run: impl FnOnce() -> R) -> R {
    let _before = WarmingUp(IS_WARMING_UP.replace(true));
    run()
}

/// What it was before, which returns when this is dropped.
struct WarmingUp(bool);

impl Drop for WarmingUp {
    fn drop(&mut self) {
        IS_WARMING_UP.set(self.0);
    }
}

/// Attention over split heads, [batch, heads, positions, width]. `bias` is added to the logits, or true where a query
/// may look, and broadcasts to [batch, heads, queries, keys]; `shares_heads` where there are fewer heads of keys and
/// values than of queries.
pub(crate) fn scaled_dot_product(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    bias: Option<&Tensor>,
    shares_heads: bool,
) -> Tensor {
    let call = Call { query, key, value, bias, shares_heads };
    if let Some(backend) = call.measurable_on().and_then(|device| choose(&call, device)) {
        match call.run(Some(backend)) {
            Ok(attended) => return attended,
            Err(error) => tracing::debug!(%error, ?backend, "attention as libtorch chooses"),
        }
    }
    Tensor::scaled_dot_product_attention(query, key, value, bias, 0.0, false, None::<f64>, shares_heads)
}

#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    query: &'a Tensor,
    key: &'a Tensor,
    value: &'a Tensor,
    bias: Option<&'a Tensor>,
    shares_heads: bool,
}

impl Call<'_> {
    /// The GPU, where there is more than one back end: in half precision.
    fn measurable_on(&self) -> Option<usize> {
        let Device::Cuda(device) = self.query.device() else { return None };
        matches!(self.query.kind(), Kind::Half | Kind::BFloat16).then_some(device)
    }

    /// By a back end, or as libtorch chooses.
    fn run(&self, backend: Option<AttentionBackend>) -> Result<Tensor, LibtorchError> {
        let Self { query, key, value, bias, shares_heads } = *self;
        match (backend, bias) {
            (Some(AttentionBackend::Cudnn), _) => cudnn_attention(query, key, value, bias),
            (Some(AttentionBackend::Efficient), _) => efficient_attention(query, key, value, bias),
            (Some(AttentionBackend::Flash), None) => flash_attention(query, key, value),
            (Some(AttentionBackend::Flash), Some(_)) => {
                Err(LibtorchError("flash attention has no bias".to_owned()))
            }
            (None, _) => Tensor::f_scaled_dot_product_attention(
                query,
                key,
                value,
                bias,
                0.0,
                false,
                None::<f64>,
                shares_heads,
            )
            .map_err(|error| LibtorchError(error.to_string())),
        }
    }
}

/// What the time depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Shape {
    device: usize,
    /// Of query, key, value and bias: number format, sizes and strides.
    tensors: Vec<(Kind, Vec<i64>, Vec<i64>)>,
    shares_heads: bool,
}

impl Shape {
    fn of(call: &Call<'_>, device: usize) -> Self {
        let tensors = [call.query, call.key, call.value].into_iter().chain(call.bias);
        let tensors = tensors.map(|tensor| (tensor.kind(), tensor.size(), tensor.stride())).collect();
        Self { device, tensors, shares_heads: call.shares_heads }
    }
}

fn chosen() -> MutexGuard<'static, HashMap<Shape, Option<AttentionBackend>>> {
    CHOSEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `None`: as libtorch chooses.
fn choose(call: &Call<'_>, device: usize) -> Option<AttentionBackend> {
    let shape = Shape::of(call, device);
    let known = || {
        let table = chosen();
        let is_full = table.len() >= SHAPES_MAX;
        table.get(&shape).copied().or_else(|| is_full.then_some(None))
    };
    if let Some(backend) = known() {
        return backend;
    }
    if !IS_WARMING_UP.get() {
        return None;
    }
    let stream = Stream::current(Device::Cuda(device)).ok()?;
    // What is being recorded does not run, and must not be waited for.
    if stream.is_capturing().unwrap_or(true) {
        return None;
    }
    let _measuring = MEASURING.lock().unwrap_or_else(PoisonError::into_inner);
    // Perhaps another thread has just measured it.
    if let Some(backend) = known() {
        return backend;
    }
    match measure(call, &stream) {
        Ok(times) => {
            let backend = fastest(&times);
            tracing::debug!(?backend, times_us = ?times, ?shape, "attention measured");
            chosen().insert(shape, backend);
            backend
        }
        Err(error) => {
            // For want of memory perhaps: the next batch may have some.
            tracing::debug!(%error, "attention could not be measured");
            None
        }
    }
}

/// Microseconds of what libtorch chooses, and of those back ends that can do it with the same result.
fn measure(call: &Call<'_>, stream: &Stream) -> Result<Vec<(Option<AttentionBackend>, f64)>, LibtorchError> {
    let expected = call.run(None)?;
    let mut times = vec![(None, f64::INFINITY)];
    for backend in BACKENDS {
        match call.run(Some(backend)).map(|attended| agree(&attended, &expected)) {
            Ok(Ok(true)) => times.push((Some(backend), f64::INFINITY)),
            Ok(Ok(false)) => tracing::debug!(?backend, "attention with another result"),
            Ok(Err(error)) => tracing::debug!(%error, ?backend, "attention could not be compared"),
            Err(error) => tracing::debug!(%error, ?backend, "attention not by this back end"),
        }
    }
    for (backend, _) in &times {
        for _ in 1..WARM_RUNS {
            let _warm = call.run(*backend);
        }
    }
    for _ in 0..ROUNDS {
        for (backend, best_us) in &mut times {
            *best_us = best_us.min(time_us(call, *backend, stream).unwrap_or(f64::INFINITY));
        }
    }
    Ok(times)
}

/// Of one run on the GPU.
fn time_us(
    call: &Call<'_>,
    backend: Option<AttentionBackend>,
    stream: &Stream,
) -> Result<f64, LibtorchError> {
    stream.spin(HEAD_START_CYCLES)?;
    let start = Event::record(stream)?;
    for _ in 0..RUNS {
        let _attended = call.run(backend)?;
    }
    let end = Event::record(stream)?;
    end.synchronize()?;
    Ok(start.elapsed_ms(&end)? * 1e3 / RUNS as f64)
}

/// Whether these are the same but for rounding; never where values are not finite.
fn agree(ours: &Tensor, expected: &Tensor) -> Result<bool, TchError> {
    let largest = expected.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok(largest.is_finite() && ours.f_allclose(expected, 0.0, ROUNDING * largest, false)?)
}

/// The first is libtorch's own choice, which stays unless another is clearly faster.
fn fastest(times: &[(Option<AttentionBackend>, f64)]) -> Option<AttentionBackend> {
    let (&(own, own_time), others) = times.split_first()?;
    let best = others.iter().min_by(|one, other| one.1.total_cmp(&other.1));
    best.filter(|(_, time)| *time < own_time * WORTHWHILE).map_or(own, |(backend, _)| *backend)
}

#[cfg(test)]
mod tests;
