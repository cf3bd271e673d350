//! The program `concord`: its commands, its HTTP endpoint, and the configuration behind both.
//!
//! Modules use only modules above them: `inputs` and `problem` know nothing of the others; `telemetry`;
//! `config`; the response (`verdict`); `http`; `serve`; and `commands` on top, with their offline tools
//! (`evaluate`, `fit`, `head`).

pub mod commands;
pub mod config;
mod evaluate;
mod fit;
mod head;
pub mod http;
pub mod inputs;
pub mod problem;
pub mod serve;
mod table;
pub mod telemetry;
pub mod verdict;
