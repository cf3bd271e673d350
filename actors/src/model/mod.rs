//! A model on this machine: a handle that reserves permits, a queue and a thread for each replica, and the
//! actor that starts the thread again when it dies. Knows nothing of policies' decisions, caches or routers.
//!
//! Images do not pass through the actor's mailbox: on an idle machine of two cores each change of thread
//! costs 0.1 ms and more, and the permits of the handle admit as a mailbox would (`make bench`, router-added
//! latency).

mod actor;
mod handle;
mod limit;
mod loaded_replica;
mod queue;
mod replica;
mod text;
mod worker;

pub(crate) use self::handle::{LoadedModel, ModelHandle, Prepared, Running, TextRequest};
pub(crate) use self::loaded_replica::LoadedReplica;
pub use self::loaded_replica::Loader;
pub(crate) use self::replica::QueuePermit;
pub(crate) use self::text::TokenSink;
pub use self::text::{GenerateOutput, TextEvent};
