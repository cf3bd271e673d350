//! The store in this process's memory: the least used values are evicted first.

use std::time::Duration;

use moka::sync::Cache;

use super::messages::{Get, Lookup};
use super::section::CacheSection;
use super::value::Value;
use crate::digest::Digest;

/// The bytes of an entry beside its value: the key, and the store's own records of its age and use.
const ENTRY_OVERHEAD_BYTES: usize = 200;

/// The store, shared by its clones.
#[derive(Debug, Clone)]
pub(crate) struct MemoryStore(Cache<Digest, Value>);

impl MemoryStore {
    pub(crate) fn new(section: &CacheSection) -> Self {
        let weight = |_: &Digest, value: &Value| {
            u32::try_from(ENTRY_OVERHEAD_BYTES + value.bytes()).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .max_capacity(section.capacity_bytes)
            .weigher(weight)
            .time_to_live(Duration::from_secs(section.ttl_s))
            .build();
        Self(cache)
    }

    pub(super) fn get(&self, get: &Get) -> Lookup {
        let verdict = self.0.get(&get.verdict);
        // A verdict needs no votes.
        let votes = if verdict.is_some() {
            Vec::new()
        } else {
            get.votes.iter().map(|key| self.0.get(key)).collect()
        };
        Lookup { verdict, votes }
    }

    pub(super) fn put(&self, values: Vec<(Digest, Value)>) {
        for (key, value) in values {
            self.0.insert(key, value);
        }
    }
}
