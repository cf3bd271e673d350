//! Concord: the command line, and the configuration behind it.

pub mod commands;
