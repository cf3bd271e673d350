//! What Concord does with models and their votes: the actors, and the decisions behind them.
//!
//! [`Engine`] starts a Model actor for each model, a Cloud actor for each that is behind a server, and a [`Router`] with its Cache actor wherever requests arrive. A
//! router is sent [`Classify`] and answers [`Routed`]. Knows nothing of HTTP or of configuration files; [`policy`]
//! knows nothing of models either.

mod breaker;
mod cache;
mod cloud;
mod diagnostic;
mod digest;
mod engine;
mod fatal;
mod loading;
mod metrics;
mod model;
mod plan;
mod pool;
mod router;
mod spread;
mod startup;
mod ticket;
mod trace;
mod voter;

pub use cache::{CacheBackend, CacheSection};
pub use cloud::{CloudSection, Protocol};
pub use diagnostic::{Diagnostic, nearest, not_one_of};
pub use digest::{Digest, feature_digest};
pub use engine::{Engine, EngineOptions, LoadError, Loader, ModelInfo, StartError};
pub use fatal::Fatal;
pub use metrics::Metrics;
pub use model::{GenerateOutput, TextEvent};
pub use plan::{Plan, TaskPlan, task_labels};
pub use router::{CacheOutcome, Classify, Explanation, Generate, GenerateStream, RouteError, Routed, Router};
pub use startup::StartupStatus;
pub use trace::{TRACE_TARGET, Trace};
