//! Tests of the kernels of a step against libtorch's own operations, on a GPU that has what they need.

use tch::{Device, Kind, Tensor};

use super::{AttendRow, AttendScratch, AttendSizes, RowTo, RowWeights, StepKernels};
use crate::kernels::fp8::Fp8Weights;
use crate::kernels::tests::{assert_close, devices, random};
use crate::kernels::{RmsNorm, rotate_eagerly as rotate};
use crate::libtorch::Stream;
use crate::nn::layers::attention;

/// The number formats, each with the largest relative difference of results that were rounded at different
/// points.
const PLACES: [(Kind, f64); 3] = [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2), (Kind::Half, 2e-3)];

/// Runs `check` in every number format on a GPU that has these kernels.
fn on_gpus(check: impl Fn(StepKernels, Device, Kind, f64)) {
    for device in devices().into_iter().filter(|device| device.is_cuda()) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for (kind, allowed) in PLACES {
            match StepKernels::of(&Tensor::zeros([1], (kind, device))) {
                Some(kernels) => check(kernels, device, kind, allowed),
                None => eprintln!("skipped on {device:?}: no kernels for it"),
            }
        }
    }
}

fn norm(width: i64, kind: Kind, device: Device) -> RmsNorm {
    RmsNorm { weight: random(&[width], kind, device), eps: 1e-6 }
}

#[test]
fn a_row_is_multiplied() {
    on_gpus(|kernels, device, kind, allowed| {
        // The sizes are fewer rows than warps, an odd number of rows, a part of a chunk, and several chunks
        // and rounds.
        for (outputs, inputs) in [(6, 64), (131, 128), (4096, 4096), (512, 12_288), (20_000, 1040)] {
            let tensor = |size: &[i64]| random(size, kind, device);
            let values = tensor(&[outputs, inputs]) / (inputs as f64).sqrt();
            let fp8 = Fp8Weights::of(&values).filter(|_| kind != Kind::Float);
            let rounded = fp8.as_ref().map(Fp8Weights::widened);
            let bias = tensor(&[outputs]);
            let weights = RowWeights { values: &values, scales: None, bias: Some(&bias) };
            let mut cases = vec![(weights, values.to_kind(Kind::Float))];
            if let (Some(fp8), Some(rounded)) = (&fp8, rounded) {
                cases.push((RowWeights { bias: Some(&bias), ..fp8.row_weights() }, rounded));
            }
            let (x, old, norm) = (tensor(&[inputs]), tensor(&[outputs]), norm(inputs, kind, device));
            for (weights, exact) in cases {
                let what = format!("{kind:?} {outputs} x {inputs}, fp8 {}", weights.scales.is_some());
                assert!(weights.fits(kind), "{what}");
                let wide =
                    |x: &Tensor| x.to_kind(Kind::Float).linear(&exact, Some(&bias.to_kind(Kind::Float)));
                let (plain, normed) = (wide(&x), wide(&norm.forward(&x)));
                let empty = |kind| Tensor::full([outputs], f64::NAN, (kind, device));

                let out = empty(kind);
                kernels.product(weights, &x, None, RowTo::Plain(&out)).unwrap();
                assert_close(&out, &plain, allowed, &what);
                let out = empty(Kind::Float);
                kernels.product(weights, &x, Some(&norm), RowTo::Wide(&out)).unwrap();
                assert_close(&out, &normed, allowed, &what);
                let sum = old.copy();
                kernels.product(weights, &x, None, RowTo::AddedTo(&sum)).unwrap();
                assert_close(&sum, &(&plain + old.to_kind(Kind::Float)), allowed, &what);
                if outputs % 2 == 0 {
                    let out = Tensor::full([outputs / 2], f64::NAN, (kind, device));
                    kernels.product(weights, &x, Some(&norm), RowTo::Gated(&out)).unwrap();
                    let halves = normed.chunk(2, -1);
                    // The bias is that of both halves.
                    assert_close(&out, &(halves[1].silu() * &halves[0]), 2.0 * allowed, &what);
                }
            }
        }
    });
}

#[test]
fn what_has_no_kernel_is_not_taken() {
    let tensor = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
    for (size, kind, fits) in [
        ([8, 64], Kind::BFloat16, true),
        ([8, 60], Kind::BFloat16, false),
        ([8, 60], Kind::Float, true),
        ([2, 40_000], Kind::BFloat16, false),
        ([8, 64], Kind::Half, false),
    ] {
        let values = tensor(&size, if kind == Kind::Half { Kind::BFloat16 } else { kind });
        let weights = RowWeights { values: &values, scales: None, bias: None };
        assert_eq!(weights.fits(kind), fits, "{size:?} {kind:?}");
    }
    let sizes = AttendSizes { heads: 32, key_heads: 8, head_width: 128, capacity: 1024 };
    for (sizes, fit) in [
        (sizes, true),
        (AttendSizes { head_width: 96, ..sizes }, false),
        (AttendSizes { key_heads: 2, ..sizes }, false),
        (AttendSizes { capacity: 1 << 20, ..sizes }, false),
    ] {
        assert_eq!(sizes.fit(Kind::BFloat16), fit, "{sizes:?}");
    }
}

#[test]
fn a_position_looks_at_itself_and_all_before_it() {
    on_gpus(|kernels, device, kind, allowed| {
        for (key_heads, group, width, capacity) in
            [(8, 4, 128, 1024), (2, 3, 64, 256), (4, 1, 128, 512), (2, 2, 32, 96)]
        {
            let heads = key_heads * group;
            let sizes = AttendSizes { heads, key_heads, head_width: width, capacity };
            if !sizes.fit(kind) {
                continue;
            }
            let tensor = |size: &[i64]| random(size, kind, device);
            let kept = [key_heads, capacity, width];
            let (keys, values, scratch) = (tensor(&kept), tensor(&kept), AttendScratch::new(sizes, device));
            let (cos, sin) = (tensor(&[capacity, width]), tensor(&[capacity, width]));
            let norms = [norm(width, kind, device), norm(width, kind, device)];
            for at in [0, 5, 63, 64, 70, capacity - 1] {
                let what = format!("{kind:?} {sizes:?} at {at}");
                let row = tensor(&[(heads + 2 * key_heads) * width]);
                let out = Tensor::full([heads * width], f64::NAN, (kind, device));
                let position = Tensor::from_slice(&[at]).to_device(device);
                let call = AttendRow {
                    row: &row,
                    norms: [&norms[0], &norms[1]],
                    angles: (&cos, &sin),
                    position: &position,
                    kept: (&keys, &values),
                    out: &out,
                };
                kernels.attend(&call, &scratch).unwrap();

                let part = |start: i64, count: i64| {
                    row.narrow(0, start * width, count * width).view([count, 1, width])
                };
                let turned = |start, count, norm: &RmsNorm| {
                    let normed = norm.forward(&part(start, count)).unsqueeze(0);
                    rotate(&normed, &cos.narrow(0, at, 1), &sin.narrow(0, at, 1))
                };
                let (query, key) = (turned(0, heads, &norms[0]), turned(heads, key_heads, &norms[1]));
                let written = (keys.narrow(1, at, 1), values.narrow(1, at, 1));
                assert_close(&written.0, &key.squeeze_dim(0), allowed, &what);
                assert_close(&written.1, &part(heads + key_heads, key_heads), 0.0, &what);
                let all = |kept: &Tensor| {
                    kept.narrow(1, 0, at + 1)
                        .to_kind(Kind::Float)
                        .repeat_interleave_self_int(group, 0, None)
                        .unsqueeze(0)
                };
                let expected = attention(&query.to_kind(Kind::Float), &all(&keys), &all(&values), None);
                assert_close(&out, &expected.view([-1]), 2.0 * allowed, &what);
            }
        }
    });
}
