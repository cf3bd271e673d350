//! The inputs and outputs of benchmarks and parity checks of a model; knows no architecture.

pub(crate) mod bench_target;
pub(crate) mod fixture;
