//! The serving side of Concord: actors that answer requests with models, caches and a policy.
//!
//! [`Engine`] starts a Model actor for each replica, a Cloud actor for each model behind a server, and a
//! [`Router`] with its Cache actor wherever requests arrive. A router takes [`Classify`] and answers
//! [`Routed`], or takes [`Generate`] and answers a [`GenerateStream`]. The crate knows nothing of HTTP or of
//! configuration files.
//!
//! Its layers, from the top: `engine`, `router`, `plan` and `loading`, `client`, then `model`, `cloud` and
//! `cache` side by side, and below them what they share (requests, deadlines, metrics, traces).

mod breaker;
mod cache;
mod capacity;
mod client;
mod cloud;
mod deadline;
mod diagnostic;
mod digest;
mod engine;
mod fatal;
mod keys;
mod load_error;
mod loading;
mod log_limit;
mod metrics;
mod model;
mod pixel_budget;
mod placement;
mod plan;
mod pool;
mod router;
mod startup;
mod trace;
mod vote_reply;
mod vote_request;

pub use cache::{CacheBackend, CacheSection};
pub use cloud::{CloudSection, Protocol};
pub use diagnostic::{Diagnostic, nearest, not_one_of};
pub use digest::Digest;
pub use engine::{Engine, EngineOptions, Loader, ModelInfo, StartError};
pub use fatal::Fatal;
pub use keys::feature_digest;
pub use load_error::LoadError;
pub use log_limit::LogLimit;
pub use metrics::{Metrics, ReloadOutcome};
pub use model::{GenerateOutput, TextEvent};
pub use plan::{Plan, TaskPlan, task_labels};
pub use router::{CacheOutcome, Classify, Explanation, Generate, GenerateStream, RouteError, Routed, Router};
pub use startup::StartupStatus;
pub use trace::{TRACE_TARGET, Trace};
