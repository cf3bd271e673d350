//! The subcommands of `concord`.

pub mod parity;

/// Tells the person at the terminal what went wrong.
pub fn warn(message: &str) {
    eprintln!("concord: {message}");
}
