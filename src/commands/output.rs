//! Prints the output of commands to the terminal: results on standard output; errors and progress on standard
//! error.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Prints an error to standard error.
pub fn warn(message: &str) {
    eprintln!("concord: {message}");
}

/// Prints `text` and a line break to standard output. Ends the program if nobody reads that any more, as
/// behind `head`.
pub fn print_line(text: &impl Display) {
    if let Err(error) = writeln!(stdout(), "{text}") {
        if error.kind() != ErrorKind::BrokenPipe {
            warn(&format!("standard output: {error}"));
        }
        std::process::exit(1);
    }
}

/// Returns a progress bar for a number of images; it is visible only at a terminal.
pub(super) fn progress_bar(images: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {pos} of {len} images{msg}, {per_sec}, {eta} to go";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(images as u64).with_style(style)
}

/// Returns a spinner for work that takes seconds or minutes and has no parts to count; it is visible only at
/// a terminal.
pub(super) fn spinner(message: &str) -> ProgressBar {
    /// The time between two of its frames.
    const TICK: Duration = Duration::from_millis(120);
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    spinner.enable_steady_tick(TICK);
    spinner.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
