//! Decodes images from bytes and preprocesses them into the pixel tensors of a model; knows no model.

pub(crate) mod decode;
pub(crate) mod decoded;
pub(crate) mod jpeg;
pub(crate) mod preprocess;
