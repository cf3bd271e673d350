//! The program `concord`: its commands, its HTTP endpoint, and the configuration behind both.
//!
//! The modules in layers, the lowest first: `inputs`, `problem`, `table` and `telemetry`; `config` and
//! `response`; `http`; `serve`; and `commands`, with their offline tools
//! (`evaluate`, `fit`, `head`).

pub mod commands;
pub mod config;
mod evaluate;
mod fit;
mod head;
pub mod http;
pub mod inputs;
pub mod problem;
pub mod response;
pub mod serve;
mod table;
pub mod telemetry;
