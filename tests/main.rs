//! End-to-end tests, by concern: the real program on real files.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at what it did not expect")]

mod bad_input;
mod bench;
mod cache;
mod cascade;
mod classify;
mod cloud;
mod commands;
mod decode;
mod docs;
mod evaluate;
mod fit;
mod generate;
mod gtsrb;
mod harness;
mod head;
mod layers;
mod learned;
mod log;
mod memory;
mod overload;
mod random;
mod replicas;
mod resilience;
mod serve;
mod slow_clients;
mod tables;
mod traces;
mod transformers;
mod validate;
