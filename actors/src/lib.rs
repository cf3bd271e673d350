//! What Concord does with models and their votes: the cascade, and the decisions behind it.
//!
//! Knows nothing of HTTP or of configuration files; [`policy`] knows nothing of models either.

mod cascade;
pub mod policy;

pub use cascade::{Cascade, LoadError};
