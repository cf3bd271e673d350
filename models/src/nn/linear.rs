//! Linear maps, x · weightsᵀ + bias, by the algorithm of cuBLASLt that is fastest for a shape, measured while
//! a model warms up.
//!
//! libtorch takes the first algorithm that cuBLASLt's heuristic proposes. For a few hundred rows, the tokens
//! of one image, others made whole models up to 8 % faster (docs/PERFORMANCE.md).

use std::sync::LazyLock;

use tch::{Device, Kind, Tensor};

use crate::kernels::{Gelu, gelu};
use crate::libtorch::{LibtorchError, ProductAlgorithm, ProductOf, product, product_algorithms};
use crate::runtime::autotune::{Autotuner, measure};

/// The largest number of shapes that are measured, at some 100 ms each. A model has about four, times its
/// batch sizes.
const SHAPES_MAX: usize = 1024;
/// The number of algorithms that are measured, in the order of cuBLASLt's heuristic: it limits the time that
/// warm-up takes.
const GUESSES_MAX: usize = 16;
/// The smallest number of rows that is measured: products of fewer are bound by reading the weights, in which
/// algorithms hardly differ.
const ROWS_MIN: i64 = 16;
/// The alignment of libtorch's memory in bytes, which the algorithms may rely on.
const ALIGNMENT: usize = 256;

/// The algorithms that have been chosen in this process.
static CHOSEN: LazyLock<Autotuner<Shape, ProductAlgorithm>> = LazyLock::new(|| Autotuner::new(SHAPES_MAX));

/// The operation that follows a product and its bias.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Epilogue<'a> {
    Nothing,
    /// GELU. In half precision only, cuBLASLt computes it with the product: always the tanh form, of sums
    /// that were not rounded before. That is no farther from either form in fp32 than rounding before it is
    /// (`gelu_behind_a_product_is_no_worse_than_after_it`).
    Gelu(Gelu),
    /// Adds this tensor, [.., outputs].
    Add(&'a Tensor),
}

/// Computes x [.., inputs] · weightsᵀ + bias, where `weights` is [outputs, inputs] and `bias` is \[outputs\].
pub(crate) fn linear(x: &Tensor, weights: &Tensor, bias: Option<&Tensor>) -> Tensor {
    linear_then(x, weights, bias, Epilogue::Nothing)
}

/// Computes the same as [`linear`], followed by an epilogue.
pub(crate) fn linear_then(x: &Tensor, weights: &Tensor, bias: Option<&Tensor>, then: Epilogue<'_>) -> Tensor {
    let call = Call { x, weights, bias, then };
    if let Some(shape) = call.shape() {
        let device = shape.device;
        let algorithm = CHOSEN.choose(shape, device, |stream| {
            let algorithms = product_algorithms(&call.product(), &call.out(), GUESSES_MAX)?;
            measure(&algorithms, |algorithm| call.run(algorithm), stream)
        });
        if let Some(algorithm) = algorithm {
            match call.run(Some(&algorithm)) {
                Ok(out) => return out,
                Err(error) => tracing::debug!(%error, "a product as libtorch chooses"),
            }
        }
    }
    then.after(x.linear(weights, bias))
}

impl Epilogue<'_> {
    /// Applies the epilogue in a step of its own.
    fn after(self, sum: Tensor) -> Tensor {
        match self {
            Self::Nothing => sum,
            Self::Gelu(form) => gelu(sum, form),
            Self::Add(added) => sum + added,
        }
    }
}

/// The arguments of a product.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    x: &'a Tensor,
    weights: &'a Tensor,
    bias: Option<&'a Tensor>,
    then: Epilogue<'a>,
}

/// Everything that the time of a call depends on.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Shape {
    device: usize,
    kind: Kind,
    rows: i64,
    inputs: i64,
    outputs: i64,
    has_bias: bool,
    has_gelu: bool,
    adds: bool,
}

impl<'a> Call<'a> {
    /// Returns the key of the call in the table, or `None` if there is nothing to choose: on a CPU, in fp32,
    /// for few rows, and for tensors whose layout is not the one that the algorithms expect.
    fn shape(&self) -> Option<Shape> {
        let (Device::Cuda(device), kind) = (self.x.device(), self.x.kind()) else { return None };
        let size = self.weights.size();
        let [outputs, inputs] = size[..] else { return None };
        let rows = self.x.numel() as i64 / inputs.max(1);
        let product = self.product();
        let tensors = || [self.x, self.weights].into_iter().chain(self.bias).chain(product.added);
        let is_plain = |tensor: &Tensor| {
            tensor.kind() == kind
                && tensor.is_contiguous()
                && (tensor.data_ptr() as usize).is_multiple_of(ALIGNMENT)
        };
        let fits = matches!(kind, Kind::BFloat16 | Kind::Half)
            && rows >= ROWS_MIN
            && self.x.size().last() == Some(&inputs)
            && product.added.is_none_or(|added| added.numel() as i64 == rows * outputs)
            && tensors().all(is_plain);
        let (has_bias, has_gelu, adds) = (self.bias.is_some(), product.has_gelu, product.added.is_some());
        fits.then_some(Shape { device, kind, rows, inputs, outputs, has_bias, has_gelu, adds })
    }

    /// Returns the product as cuBLASLt takes it.
    fn product(&self) -> ProductOf<'a> {
        let Self { x, weights, bias, then } = *self;
        let added = if let Epilogue::Add(added) = then { Some(added) } else { None };
        ProductOf { x, weights, bias, added, has_gelu: matches!(then, Epilogue::Gelu(_)) }
    }

    /// Allocates the output, [.., outputs].
    fn out(&self) -> Tensor {
        let mut size = self.x.size();
        if let (Some(last), Some(outputs)) = (size.last_mut(), self.weights.size().first()) {
            *last = *outputs;
        }
        Tensor::empty(size, (self.x.kind(), self.x.device()))
    }

    /// Runs one algorithm, or the one that libtorch chooses for `None`.
    fn run(&self, algorithm: Option<&ProductAlgorithm>) -> Result<Tensor, LibtorchError> {
        match algorithm {
            Some(algorithm) => {
                let out = self.out();
                product(&self.product(), &out, algorithm)?;
                Ok(out)
            }
            None => {
                let sum = self.x.f_linear(self.weights, self.bias);
                Ok(self.then.after(sum.map_err(|error| LibtorchError(error.to_string()))?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{CHOSEN, Call, Epilogue, linear, linear_then};
    use crate::kernels::Gelu;
    use crate::kernels::tests::{assert_close, devices, random};
    use crate::libtorch::{Graph, Stream, product_algorithms};
    use crate::runtime::autotune::warming_up;

    /// Creates random inputs, weights and bias.
    fn tensors(rows: i64, inputs: i64, outputs: i64, kind: Kind, device: Device) -> [Tensor; 3] {
        let weights = random(&[outputs, inputs], kind, device) / (inputs as f64).sqrt();
        [random(&[1, rows, inputs], kind, device), weights, random(&[outputs], kind, device)]
    }

    #[test]
    fn it_is_the_product_whoever_chooses() {
        for device in devices() {
            let stream = Stream::new(device).unwrap();
            let _current = stream.enter().unwrap();
            for (kind, allowed) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Half, 2e-3)] {
                for (rows, inputs, outputs) in
                    [(581, 1024, 3072), (17, 4304, 1152), (3, 64, 64), (100, 72, 30)]
                {
                    let [x, weights, bias] = tensors(rows, inputs, outputs, kind, device);
                    for bias in [None, Some(&bias)] {
                        let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
                        let expected = float(&x).linear(&float(&weights), bias.map(float).as_ref());
                        let what = format!("{device:?} {kind:?} {rows} x {inputs} x {outputs}");
                        assert_close(&linear(&x, &weights, bias), &expected, allowed, &what);
                        let measured = warming_up(|| linear(&x, &weights, bias));
                        assert_close(&measured, &expected, allowed, &what);
                        assert_close(&linear(&x, &weights, bias), &expected, allowed, &what);
                    }
                }
            }
        }
    }

    /// Computes the mean absolute error against the expected values in fp32.
    fn mean_error(found: &Tensor, expected: &Tensor) -> f64 {
        (found.to_kind(Kind::Float) - expected).abs().mean(Kind::Double).double_value(&[])
    }

    #[test]
    fn gelu_behind_a_product_is_no_worse_than_after_it() {
        for device in devices() {
            let stream = Stream::new(device).unwrap();
            let _current = stream.enter().unwrap();
            for (kind, form) in [Kind::Float, Kind::BFloat16, Kind::Half]
                .into_iter()
                .flat_map(|kind| [(kind, Gelu::Exact), (kind, Gelu::Tanh)])
                // `QuantLinear::forward_gelu` never asks for the exact form with an fp16 product.
                .filter(|case| *case != (Kind::Half, Gelu::Exact))
            {
                let [x, weights, bias] = tensors(581, 1024, 4096, kind, device);
                let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
                let name = if form == Gelu::Tanh { "tanh" } else { "none" };
                let expected = float(&x).linear(&float(&weights), Some(&float(&bias))).gelu(name);
                let after = mean_error(&x.linear(&weights, Some(&bias)).gelu(name), &expected);
                let behind = || linear_then(&x, &weights, Some(&bias), Epilogue::Gelu(form));
                let what = format!("{device:?} {kind:?} {form:?}");
                for found in [behind(), warming_up(behind), behind()] {
                    let behind = mean_error(&found, &expected);
                    assert!(behind <= 1.01 * after + 1e-7, "{what}: {behind:e} behind, {after:e} after");
                }
            }
        }
    }

    #[test]
    fn what_is_added_behind_a_product_is_rounded_once() {
        for device in devices() {
            let stream = Stream::new(device).unwrap();
            let _current = stream.enter().unwrap();
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                let [x, weights, bias] = tensors(729, 4304, 1152, kind, device);
                let residual = tensors(729, 1152, 8, kind, device)[0].shallow_clone();
                let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
                let expected = float(&x).linear(&float(&weights), Some(&float(&bias))) + float(&residual);
                let after = mean_error(&(x.linear(&weights, Some(&bias)) + &residual), &expected);
                let behind = || linear_then(&x, &weights, Some(&bias), Epilogue::Add(&residual));
                for found in [behind(), warming_up(behind), behind()] {
                    let behind = mean_error(&found, &expected);
                    assert!(
                        behind <= 1.01 * after + 1e-6,
                        "{device:?} {kind:?}: {behind:e}, {after:e} after"
                    );
                }
            }
        }
    }

    #[test]
    fn every_algorithm_gives_the_product_and_a_graph_holds_it() {
        for device in devices().into_iter().filter(|device| device.is_cuda()) {
            let stream = Stream::new(device).unwrap();
            let _current = stream.enter().unwrap();
            let [x, weights, bias] = tensors(581, 4096, 1024, Kind::BFloat16, device);
            let call = Call { x: &x, weights: &weights, bias: Some(&bias), then: Epilogue::Nothing };
            let algorithms = product_algorithms(&call.product(), &call.out(), 16).unwrap();
            assert!(algorithms.len() > 1, "{} algorithms", algorithms.len());
            let expected = call.run(None).unwrap();
            for algorithm in &algorithms {
                let ours = call.run(Some(algorithm)).unwrap();
                assert_close(&ours, &expected, 1e-2, &format!("{algorithm:?}"));
            }
            let eagerly = warming_up(|| linear(&x, &weights, Some(&bias)));
            assert!(CHOSEN.chosen().contains_key(&call.shape().unwrap()));
            let (graph, recorded) = Graph::capture(None, || linear(&x, &weights, Some(&bias))).unwrap();
            graph.replay().unwrap();
            assert_eq!(recorded, eagerly);
        }
    }
}
