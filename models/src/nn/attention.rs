//! Scaled dot-product attention, softmax(q kᵀ / √d) v, by the back end of libtorch that is fastest for a
//! shape, measured while a model warms up.

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

use crate::libtorch::{LibtorchError, cudnn_attention, efficient_attention, flash_attention};
use crate::runtime::autotune::{Autotuner, measure};

/// The largest number of shapes that are measured, at some 10 ms each. A model needs a few dozen to warm up.
const SHAPES_MAX: usize = 512;

/// A back end of libtorch for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttentionBackend {
    Cudnn,
    Flash,
    Efficient,
}

const BACKENDS: [AttentionBackend; 3] =
    [AttentionBackend::Cudnn, AttentionBackend::Flash, AttentionBackend::Efficient];

/// The back ends that have been chosen in this process.
static CHOSEN: LazyLock<Autotuner<Shape, AttentionBackend>> = LazyLock::new(|| Autotuner::new(SHAPES_MAX));

/// Computes attention over split heads, [batch, heads, positions, width].
///
/// `bias` is added to the logits or, if boolean, is true where a query may look; it broadcasts to [batch,
/// heads, queries, keys]. `shares_heads` says that keys and values have fewer heads than queries
/// (grouped-query attention).
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

/// The arguments of attention.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    query: &'a Tensor,
    key: &'a Tensor,
    value: &'a Tensor,
    bias: Option<&'a Tensor>,
    shares_heads: bool,
}

impl Call<'_> {
    /// Returns the index of the GPU if there is more than one back end to choose from, which is so in half
    /// precision.
    fn measurable_on(&self) -> Option<usize> {
        let Device::Cuda(device) = self.query.device() else { return None };
        matches!(self.query.kind(), Kind::Half | Kind::BFloat16).then_some(device)
    }

    /// Runs one back end, or the one that libtorch chooses for `None`.
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

/// Everything that the time of a call depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Shape {
    device: usize,
    /// The number format, sizes and strides of query, key, value and bias.
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

/// Returns the fastest back end for the call's shape, or `None` to leave the choice to libtorch.
fn choose(call: &Call<'_>, device: usize) -> Option<AttentionBackend> {
    CHOSEN.choose(Shape::of(call, device), device, |stream| {
        measure(&BACKENDS, |backend| call.run(backend.copied()), stream)
    })
}

#[cfg(test)]
mod tests;
