//! Tests of the kernels against libtorch's own operations, on every device of this machine.

use tch::{Device, Kind, Tensor};

use super::{
    Gelu, LayerNorm, Norm, RmsNorm, add_norm, gelu, norm_rotate, rotate, rotate_eagerly, silu_gated,
};
use crate::libtorch::{Graph, Stream, cuda_devices};
use crate::runtime::cuda_graphs::CudaGraphCache;

pub(crate) fn devices() -> Vec<Device> {
    let gpus = cuda_devices();
    if gpus == 0 {
        eprintln!("skipped on CUDA: no GPU here");
    }
    std::iter::once(Device::Cpu).chain((0..gpus.min(1)).map(Device::Cuda)).collect()
}

/// Returns each device with each number format, and the largest relative difference of results that were
/// rounded at different points.
fn places() -> Vec<(Device, Kind, f64)> {
    let kinds = [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2), (Kind::Half, 2e-3)];
    devices().into_iter().flat_map(|device| kinds.map(|(kind, allowed)| (device, kind, allowed))).collect()
}

pub(crate) fn random(size: &[i64], kind: Kind, device: Device) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind).to_device(device)
}

pub(crate) fn assert_close(ours: &Tensor, expected: &Tensor, allowed: f64, what: &str) {
    assert_eq!(ours.size(), expected.size(), "{what}");
    let expected = expected.to_kind(Kind::Double);
    let scale = expected.abs().max().double_value(&[]);
    let difference = (ours.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
    assert!(difference <= allowed * scale, "{what}: {difference} of {scale}");
}

#[test]
fn a_residual_is_added_with_its_norm() {
    for (device, kind, allowed) in places() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        // The widths are those of the smallest model and of the largest ones, one of no whole number of
        // packs, and one of more than a block of threads.
        for width in [64, 1152, 4096, 130, 16_384] {
            let tensor = |size: &[i64]| random(size, kind, device);
            let (residual, x) = (tensor(&[2, 5, width]), tensor(&[2, 5, width]));
            let (scale, weight, bias) = (tensor(&[width]), tensor(&[width]), tensor(&[width]));
            let layer_norm = LayerNorm { weight: weight.shallow_clone(), bias, eps: 1e-6 };
            let rms_norm = RmsNorm { weight, eps: 1e-6 };
            for (norm, scale) in [
                (Norm::Layer(&layer_norm), None),
                (Norm::Layer(&layer_norm), Some(&scale)),
                (Norm::Rms(&rms_norm), None),
            ] {
                let (sum, normed) = add_norm(&residual, &x, scale, norm);
                let added = scale.map_or_else(|| x.shallow_clone(), |scale| &x * scale);
                let what = format!("{device:?} {kind:?} {width}");
                assert_close(&sum, &(&residual + added), allowed, &what);
                // The norm is compared with that of the rounded sum, whose rounding is no fault of the norm.
                assert_close(&normed, &norm.forward(&sum), allowed, &what);
            }
        }
    }
}

#[test]
fn the_last_positions_are_rotated_and_nothing_else() {
    for (device, kind, allowed) in places() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for (prefix, heads, width) in [(5, 4, 64), (0, 3, 128), (1, 2, 8), (2, 2, 6)] {
            let (positions, all) = (7, (heads + 1) * width);
            let rows = random(&[3, prefix + positions, all], kind, device);
            let (cos, sin) =
                (random(&[positions, width], kind, device), random(&[positions, width], kind, device));
            let before = rows.copy();
            rotate(&rows, heads, (&cos, &sin));
            let heads_of = |rows: &Tensor| {
                let part = rows.narrow(1, prefix, positions).narrow(2, 0, heads * width);
                part.reshape([3, positions, heads, width]).transpose(1, 2)
            };
            let what = format!("{device:?} {kind:?} {prefix} {width}");
            assert_close(&heads_of(&rows), &rotate_eagerly(&heads_of(&before), &cos, &sin), allowed, &what);
            let (value, old) = (rows.narrow(2, heads * width, width), before.narrow(2, heads * width, width));
            assert!(value.equal(&old), "{what}");
            assert!(rows.narrow(1, 0, prefix).equal(&before.narrow(1, 0, prefix)), "{what}");
        }
    }
}

#[test]
fn heads_are_normalised_and_rotated_and_values_left_alone() {
    for (device, kind, allowed) in places() {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for ([queries, keys], width, tokens) in [([4, 2], 128, 9), ([2, 1], 64, 33), ([3, 3], 24, 2)] {
            let (heads, tensor) = (queries + keys, |size: &[i64]| random(size, kind, device));
            let rows = tensor(&[2, tokens, (heads + keys) * width]);
            let (cos, sin) = (tensor(&[tokens, width]), tensor(&[tokens, width]));
            let norms = [0, 1].map(|_| RmsNorm { weight: tensor(&[width]), eps: 1e-6 });
            let before = rows.copy();
            norm_rotate(&rows, [queries, keys], [&norms[0], &norms[1]], (&cos, &sin));
            let part = |rows: &Tensor, start: i64, heads: i64| {
                rows.narrow(2, start * width, heads * width).reshape([2, tokens, heads, width])
            };
            for (start, heads, norm) in [(0, queries, &norms[0]), (queries, keys, &norms[1])] {
                // The expected values are computed in fp32, as the kernel does it: half precision would round
                // between the two operations.
                let wide = |x: &Tensor| x.to_kind(Kind::Float);
                let norm = RmsNorm { weight: wide(&norm.weight), eps: norm.eps };
                let normed = norm.forward(&wide(&part(&before, start, heads))).transpose(1, 2);
                let expected = rotate_eagerly(&normed, &wide(&cos), &wide(&sin)).transpose(1, 2);
                let what = format!("{device:?} {kind:?} {width} {start}");
                assert_close(&part(&rows, start, heads), &expected, allowed, &what);
            }
            assert!(part(&rows, heads, keys).equal(&part(&before, heads, keys)));
        }
    }
}

#[test]
fn gelu_is_that_of_libtorch() {
    for (device, kind, allowed) in places() {
        for size in [[3, 64], [1, 7]] {
            for (form, name) in [(Gelu::Exact, "none"), (Gelu::Tanh, "tanh")] {
                let x = random(&size, kind, device) * 3.0;
                let expected = x.gelu(name);
                assert_close(&gelu(x, form), &expected, allowed, &format!("{device:?} {kind:?} {name}"));
            }
        }
    }
}

#[test]
fn a_gate_is_applied() {
    for (device, kind, allowed) in places() {
        for width in [64, 12_288, 10] {
            let rows = random(&[2, 3, width], kind, device);
            let halves = rows.chunk(2, -1);
            let what = format!("{device:?} {kind:?} {width}");
            assert_close(&silu_gated(&rows), &(halves[1].silu() * &halves[0]), allowed, &what);
        }
    }
}

#[test]
fn a_graph_does_again_what_was_recorded() {
    for device in devices().into_iter().filter(|device| device.is_cuda()) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        let x = Tensor::ones([4, 64], (Kind::Float, device));
        let _warm = x.matmul(&x.tr());
        let (graph, product) = Graph::capture(None, || x.matmul(&x.tr())).unwrap();
        for value in [2.0, 3.0] {
            let _filled = x.shallow_clone().fill_(value);
            graph.replay().unwrap();
            assert_eq!(product.max().double_value(&[]), 64.0 * value * value);
        }
        // An operation that waits for the device cannot be recorded, and the stream is free again afterwards.
        assert!(Graph::capture(None, || x.max().double_value(&[])).is_err());
    }
}

#[test]
fn replays_equal_what_they_replay_for_every_batch() {
    for device in devices().into_iter().filter(|device| device.is_cuda()) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        let (graphs, weight) = (CudaGraphCache::new(true), random(&[32, 32], Kind::Float, device));
        let forward = |inputs: &[Tensor]| {
            vec![inputs[0].matmul(&weight) + &inputs[1], inputs[0].sum_dim_intlist(1, false, Kind::Float)]
        };
        for batch in [8, 3, 1, 8, 5] {
            let (x, shared) = (random(&[batch, 32], Kind::Float, device), random(&[32], Kind::Float, device));
            let ours = graphs.run(&[&x], &[&shared], forward).unwrap();
            let expected = forward(&[x.shallow_clone(), shared.shallow_clone()]);
            for (ours, expected) in ours.iter().zip(&expected) {
                assert_close(ours, expected, 1e-6, &format!("{batch}"));
            }
        }
        assert_eq!(crate::graph_fallbacks(), 0);
    }
}
