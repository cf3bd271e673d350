//! The execution of computation: devices, CUDA graphs and autotuning; knows no layer and no model.

pub(crate) mod autotune;
pub(crate) mod cuda_graphs;
pub(crate) mod device;
pub(crate) mod rng;
