//! softmax(q kᵀ / √d) v by the back end of libtorch that is fastest for a shape, measured while a model warms up.

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

use crate::libtorch::{LibtorchError, cudnn_attention, efficient_attention, flash_attention};
use crate::runtime::autotune::{Autotuner, measure};

/// Shapes that are measured, some 10 ms each. Warm-up needs some dozens a model.
const SHAPES_MAX: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionBackend {
    Cudnn,
    Flash,
    Efficient,
}

const BACKENDS: [AttentionBackend; 3] =
    [AttentionBackend::Cudnn, AttentionBackend::Flash, AttentionBackend::Efficient];

static CHOSEN: LazyLock<Autotuner<Shape, AttentionBackend>> = LazyLock::new(|| Autotuner::new(SHAPES_MAX));

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

/// `None`: as libtorch chooses.
fn choose(call: &Call<'_>, device: usize) -> Option<AttentionBackend> {
    CHOSEN.choose(Shape::of(call, device), device, |stream| {
        measure(&BACKENDS, |backend| call.run(backend.copied()), stream)
    })
}

#[cfg(test)]
mod tests;
