//! The cache: votes and verdicts by key, in memory or in Redis. It never fails: what it cannot find or keep
//! is a counted miss. Knows nothing of what the keys are made of.

mod actor;
mod memory;
mod messages;
mod redis;
mod seal;
mod section;
mod value;

pub(crate) use self::actor::Cache;
pub(crate) use self::memory::MemoryStore;
pub(crate) use self::messages::{Get, Lookup, Put};
pub use self::section::{CacheBackend, CacheSection};
pub(crate) use self::value::Value;
