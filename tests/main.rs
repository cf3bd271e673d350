//! End-to-end tests, by concern: the real program on real files.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at what it did not expect")]

mod classify;
mod commands;
mod gtsrb;
mod harness;
mod validate;
