//! A model behind somebody's server, which gives votes like any other, fails like any other, and costs money.
//! Knows nothing of models on this machine.

mod actor;
mod answer;
mod budget;
mod chat;
mod client;
mod encode;
mod first_token;
mod ledger;
mod section;
mod systemone;
mod usage;

pub(crate) use self::actor::{CloudHandle, CloudPermit};
pub use self::section::{CloudSection, Protocol};
