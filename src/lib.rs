//! Concord: the command line, and the configuration behind it.

pub mod commands;
pub mod config;
pub mod inputs;
pub mod problem;
pub mod verdict;
