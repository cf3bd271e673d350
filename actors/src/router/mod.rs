//! The Router actor: a request in, the answer out. The only part that knows the order of things and asks the
//! policy; knows no architecture, no server's protocol and no store.

mod actor;
mod admission;
mod cascade;
mod error;
mod explain;
mod generate;
mod generate_stream;
mod images;
mod known;
mod messages;
mod shared;
mod single_flight;
mod work;

pub use self::actor::Router;
pub(crate) use self::admission::Admission;
pub use self::error::RouteError;
pub use self::generate_stream::GenerateStream;
pub use self::messages::{CacheOutcome, Classify, Explanation, Generate, Routed};
pub(crate) use self::shared::Shared;
pub(crate) use self::single_flight::SingleFlight;
