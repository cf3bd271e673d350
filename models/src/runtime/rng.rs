//! The lock of libtorch's random number generator.

use std::sync::Mutex;

/// A lock that every thread holds while it draws random numbers: there is one generator for the process, and
/// equal seeds must give equal weights.
pub(crate) static RNG: Mutex<()> = Mutex::new(());
