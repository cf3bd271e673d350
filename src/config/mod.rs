//! The configuration `ensemble.toml`: read, overridden by `CONCORD__SECTION__KEY` variables, and validated as
//! a whole. It loads no model and knows nothing of HTTP.
//!
//! The result is an [`Ensemble`] without faults, or all its faults, each with its line.

mod changes;
mod ensemble;
mod error;
mod keys;
mod learned;
mod model;
mod own_options;
mod reader;
mod section;
mod server;
mod source;

pub use changes::{Change, change};
pub use ensemble::Ensemble;
pub use error::{ConfigError, Diagnostics, LocatedDiagnostic, Location};
pub(crate) use model::needs_heads;
pub use server::ServerSection;
