//! What Concord does with models and their votes: the actors, and the decisions behind them.
//!
//! [`Engine`] starts a Model actor for each model, and a [`Router`] with its Cache actor wherever requests arrive. A
//! router is sent [`Classify`] and answers [`Routed`]. Knows nothing of HTTP or of configuration files; [`policy`]
//! knows nothing of models either.

mod cache;
mod digest;
mod engine;
mod fatal;
mod metrics;
mod model;
mod plan;
pub mod policy;
mod pool;
mod router;
mod ticket;
mod trace;

pub use cache::{CacheBackend, CacheSection};
pub use digest::Digest;
pub use engine::{Engine, EngineOptions, LoadError, Loader, ModelInfo, StartError};
pub use fatal::Fatal;
pub use metrics::Metrics;
pub use plan::{Plan, TaskPlan};
pub use router::{CacheOutcome, Caller, Classify, Presence, RouteError, Routed, Router};
pub use trace::{TRACE_TARGET, Trace};
