//! The messages that the Cache actor takes.

use actix::Message;

use super::value::Value;
use crate::Trace;
use crate::digest::Digest;

/// A lookup of a verdict and, where there is none, of the votes that it would be made of.
#[derive(Debug, Message)]
#[rtype(result = "Lookup")]
pub(crate) struct Get {
    pub(crate) verdict: Digest,
    pub(crate) votes: Vec<Digest>,
    pub(crate) trace: Trace,
}

/// The result of a lookup.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    pub(crate) verdict: Option<Value>,
    /// The votes in the order of the keys.
    pub(crate) votes: Vec<Option<Value>>,
}

/// A message that stores values; nobody waits for it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Put {
    pub(crate) values: Vec<(Digest, Value)>,
    pub(crate) trace: Trace,
}
