//! Tests of each back end against libtorch's own choice in fp32, of what the table remembers, and of CUDA
//! graphs that contain attention.

use tch::{Device, Kind, Tensor};

use super::{AttentionBackend, BACKENDS, CHOSEN, Call, Shape, choose, scaled_dot_product};
use crate::kernels::tests::{assert_close, devices, random};
use crate::libtorch::{Graph, Stream};
use crate::runtime::autotune::warming_up;

/// The largest error that rounding to bf16 explains.
const ALLOWED: f64 = 2e-2;

/// Queries, keys and values as projections return them: [rows, positions, heads · width], split into heads.
struct Inputs {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Option<Tensor>,
    shares_heads: bool,
}

impl Inputs {
    fn call(&self) -> Call<'_> {
        let (query, key, value) = (&self.query, &self.key, &self.value);
        Call { query, key, value, bias: self.bias.as_ref(), shares_heads: self.shares_heads }
    }

    fn attended(&self) -> Tensor {
        let Call { query, key, value, bias, shares_heads } = self.call();
        warming_up(|| scaled_dot_product(query, key, value, bias, shares_heads))
    }

    /// Computes the reference: libtorch's own attention in fp32.
    fn expected(&self) -> Tensor {
        let float = |tensor: &Tensor| tensor.to_kind(Kind::Float);
        // A boolean mask keeps its number format.
        let bias = self.bias.as_ref().map(|bias| match bias.kind() {
            Kind::Bool => bias.shallow_clone(),
            _ => float(bias),
        });
        let (query, key, value) = (float(&self.query), float(&self.key), float(&self.value));
        let shares = self.shares_heads;
        Tensor::scaled_dot_product_attention(&query, &key, &value, bias, 0.0, false, None::<f64>, shares)
    }

    fn shape(&self) -> Shape {
        Shape::of(&self.call(), 0)
    }
}

/// Creates random inputs; the sizes are rows, heads, key heads, queries, keys and width.
fn inputs(sizes: [i64; 6], kind: Kind, device: Device) -> Inputs {
    let [rows, heads, key_heads, queries, keys, width] = sizes;
    let split = |positions: i64, heads: i64| {
        let projected = random(&[rows, positions, heads * width], kind, device);
        projected.view([rows, positions, heads, width]).transpose(1, 2)
    };
    Inputs {
        query: split(queries, heads),
        key: split(keys, key_heads),
        value: split(keys, key_heads),
        bias: None,
        shares_heads: heads != key_heads,
    }
}

/// Creates small and large cases, one of a width that is no power of two and one of a single query; with
/// shared heads, a mask and a bias.
fn cases(kind: Kind, device: Device) -> Vec<Inputs> {
    let mut cases: Vec<_> = [
        [2, 4, 4, 69, 69, 32],
        [16, 4, 4, 144, 144, 32],
        [1, 16, 16, 201, 201, 64],
        [1, 4, 4, 1, 77, 72],
        [1, 8, 2, 40, 40, 64],
        [2, 8, 2, 1, 64, 128],
    ]
    .map(|sizes| inputs(sizes, kind, device))
    .into();
    // The first key stays visible to all queries.
    let mask = Tensor::arange(69, (Kind::Int64, device)).remainder(3).eq(0).view([1, 1, 1, 69]);
    cases.push(Inputs { bias: Some(mask), ..inputs([2, 4, 4, 69, 69, 32], kind, device) });
    let open = Tensor::zeros([1, 1, 1, 64], (kind, device));
    let _closed = open.narrow(3, 40, 24).fill_(f64::NEG_INFINITY);
    cases.push(Inputs { bias: Some(open.shallow_clone()), ..inputs([2, 8, 2, 1, 64, 128], kind, device) });
    cases.push(Inputs { bias: Some(open), ..inputs([2, 8, 8, 1, 64, 128], kind, device) });
    cases
}

#[test]
fn on_a_cpu_it_is_what_libtorch_does() {
    for (place, case) in cases(Kind::Float, Device::Cpu).iter().enumerate() {
        assert_eq!(case.attended(), case.expected(), "case {place}");
        assert!(case.call().measurable_on().is_none(), "case {place}");
    }
    // An exception thrown in C++ comes back as an error.
    for case in cases(Kind::BFloat16, Device::Cpu) {
        assert!(BACKENDS.iter().all(|backend| case.call().run(Some(*backend)).is_err()));
    }
}

#[test]
fn every_back_end_gives_the_same_but_for_rounding() {
    for device in devices().into_iter().filter(|device| device.is_cuda()) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        for (place, case) in cases(Kind::BFloat16, device).iter().enumerate() {
            let expected = case.expected();
            assert_close(&case.attended(), &expected, ALLOWED, &format!("case {place}, first"));
            assert_close(&case.attended(), &expected, ALLOWED, &format!("case {place}, again"));
            for backend in BACKENDS {
                match case.call().run(Some(backend)) {
                    Ok(ours) => {
                        assert_close(&ours, &expected, ALLOWED, &format!("case {place}, {backend:?}"));
                    }
                    Err(error) => eprintln!("case {place}: not by {backend:?}: {error}"),
                }
            }
        }
        let plain = inputs([2, 4, 4, 69, 69, 32], Kind::BFloat16, device);
        assert!(
            plain.call().run(Some(AttentionBackend::Flash)).is_ok(),
            "at least the plain one is one for flash"
        );
    }
}

#[test]
fn a_choice_is_remembered_and_recorded() {
    for device in devices().into_iter().filter(|device| device.is_cuda()) {
        let stream = Stream::new(device).unwrap();
        let _current = stream.enter().unwrap();
        // No other test uses this length, so that the shape is not in the table yet.
        let case = inputs([2, 4, 4, 71, 71, 32], Kind::BFloat16, device);
        let _plan_of_cudnn = case.call().run(None).unwrap();
        let (_graph, _attended) = Graph::capture(None, || case.attended()).unwrap();
        assert!(!CHOSEN.chosen().contains_key(&case.shape()), "what is recorded is not measured");
        let first = warming_up(|| choose(&case.call(), 0));
        assert_eq!(CHOSEN.chosen().get(&case.shape()), Some(&first), "what was measured is remembered");
        assert_eq!(choose(&case.call(), 0), first);
        let eagerly = case.attended();
        let (graph, recorded) = Graph::capture(None, || case.attended()).unwrap();
        graph.replay().unwrap();
        assert_eq!(recorded, eagerly, "a graph has the choice, too");
    }
}

#[test]
fn a_shape_is_all_that_the_time_depends_on() {
    let (kind, device) = (Kind::Float, Device::Cpu);
    let of = |sizes| inputs(sizes, kind, device);
    let sizes = [2, 4, 4, 9, 9, 8];
    let plain = of(sizes).shape();
    assert_eq!(of(sizes).shape(), plain, "not on the values");
    let dense = Inputs { query: of(sizes).query.contiguous(), ..of(sizes) };
    let bias = |kind| Inputs { bias: Some(Tensor::ones([1, 1, 1, 9], (kind, device))), ..of(sizes) };
    let others = [
        ("sizes", of([2, 4, 4, 9, 10, 8]).shape()),
        ("strides", dense.shape()),
        ("number format", inputs(sizes, Kind::BFloat16, device).shape()),
        ("bias", bias(Kind::Float).shape()),
        ("its number format", bias(Kind::Bool).shape()),
        ("shared heads", Inputs { shares_heads: true, ..of(sizes) }.shape()),
        ("device", Shape::of(&of(sizes).call(), 1)),
    ];
    for (place, (what, other)) in others.iter().enumerate() {
        assert_ne!(*other, plain, "{what}");
        assert!(others[..place].iter().all(|(_, before)| before != other), "{what}");
    }
}
