//! The lock of libtorch's generator of random numbers.

use std::sync::Mutex;

/// Held by whoever draws random numbers, one after the other: there is one generator, and equal seeds are to give equal
/// weights.
pub(crate) static RNG: Mutex<()> = Mutex::new(());
