//! Concord: the command line, the endpoint, and the configuration behind them.

pub mod commands;
pub mod config;
mod evaluate;
mod fit;
mod head;
pub mod http;
pub mod inputs;
pub mod problem;
pub mod serve;
pub mod telemetry;
pub mod verdict;
