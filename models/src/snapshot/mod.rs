//! A snapshot folder as Hugging Face publishes it: configuration, weights and tokenizer; knows no
//! architecture.

pub(crate) mod digest;
pub(crate) mod folder;
pub(crate) mod limits;
pub mod presets;
pub(crate) mod tokenizer;
pub(crate) mod weights;
