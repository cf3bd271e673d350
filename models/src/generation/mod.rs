//! Generation of text, token by token, with any decoder; knows no architecture.

pub(crate) mod api;
pub(crate) mod beam;
pub(crate) mod decoder;
pub(crate) mod greedy;
pub(crate) mod static_cache;
pub(crate) mod text_stream;
