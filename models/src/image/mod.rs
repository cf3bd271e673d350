//! Decodes images from bytes and preprocesses them into the pixel tensors of a model; knows no model.

mod alpha;
mod bmp;
pub(crate) mod decode;
pub(crate) mod decoded;
pub(crate) mod error;
mod gif;
mod jpeg;
pub(crate) mod limits;
mod orientation;
mod png;
pub(crate) mod preprocess;
mod webp;
