//! The Cache actor: picks the store and asks it.

use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Context, Handler, ResponseFuture};

use super::memory::MemoryStore;
use super::messages::{Get, Lookup, Put};
use super::redis::RedisStore;
use super::section::{CacheBackend, CacheSection};
use crate::metrics::{Metrics, Phase};
use crate::trace::TRACE_TARGET;

/// One message for each request that its router has in hand; those are bounded by the router's own mailbox,
/// so this never fills before that one.
const MAILBOX: usize = 4096;

/// The actor, one beside each router, on the same thread.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Store,
    metrics: Metrics,
}

/// The store of the values.
#[derive(Debug, Clone)]
pub(crate) enum Store {
    /// The memory of this process, shared by its cache actors.
    Memory(MemoryStore),
    /// A connection for each cache actor, so that no thread wakes another.
    Redis(Arc<RedisStore>),
}

impl Cache {
    pub(crate) fn new(section: &CacheSection, memory: &MemoryStore, metrics: &Metrics) -> Self {
        let store = match section.backend() {
            CacheBackend::Memory => Store::Memory(memory.clone()),
            CacheBackend::Redis => match RedisStore::new(section, metrics) {
                Ok(store) => Store::Redis(Arc::new(store)),
                // `CacheSection::check` has refused such an address; without a server votes are still given.
                Err(error) => {
                    tracing::error!(%error, "no cache: the address of Redis cannot be used");
                    Store::Memory(memory.clone())
                }
            },
        };
        Self { store, metrics: metrics.clone() }
    }
}

impl Actor for Cache {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Get> for Cache {
    type Result = ResponseFuture<Lookup>;

    fn handle(&mut self, get: Get, _: &mut Self::Context) -> Self::Result {
        let started = Instant::now();
        let (store, metrics) = (self.store.clone(), self.metrics.clone());
        let trace = get.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "cache.get", concord.service = "concord-cache",
                cache.backend = store.name(), cache.verdict = tracing::field::Empty, cache.votes = tracing::field::Empty)
        });
        Box::pin(async move {
            let found = match &store {
                Store::Memory(memory) => memory.get(&get),
                Store::Redis(redis) => redis.get(&get).await,
            };
            trace.record("cache.verdict", found.verdict.is_some());
            trace.record("cache.votes", found.votes.iter().flatten().count());
            metrics.observe(Phase::CacheGet, started.elapsed());
            found
        })
    }
}

impl Handler<Put> for Cache {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, put: Put, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let trace = put.trace.child(|parent| {
            tracing::info_span!(target: TRACE_TARGET, parent: parent, "cache.put", concord.service = "concord-cache",
                cache.backend = store.name(), cache.values = put.values.len())
        });
        Box::pin(async move {
            match store {
                Store::Memory(memory) => memory.put(put.values),
                Store::Redis(redis) => redis.put(put.values).await,
            }
            drop(trace);
        })
    }
}

impl Store {
    fn name(&self) -> &'static str {
        match self {
            Self::Memory(_) => "memory",
            Self::Redis(_) => "redis",
        }
    }
}
