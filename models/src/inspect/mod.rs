//! What benchmarks and parity checks read from a model; knows no architecture.

pub(crate) mod bench_target;
pub(crate) mod fixture;
