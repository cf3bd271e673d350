//! Neural-network layers that the architectures share; knows no architecture and no task.

pub(crate) mod attention;
pub(crate) mod blocks;
pub(crate) mod encoder;
pub(crate) mod kv_cache;
pub(crate) mod layers;
pub(crate) mod linear;
pub(crate) mod norm;
pub(crate) mod quantized_linear;
pub(crate) mod rotary;
