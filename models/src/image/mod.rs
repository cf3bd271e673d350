//! Images: decoded from bytes, and preprocessed into what a model takes; knows no model.

pub(crate) mod decode;
pub(crate) mod decoded;
pub(crate) mod jpeg;
pub(crate) mod preprocess;
