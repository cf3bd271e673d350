//! The subcommands of `concord`, a file each, and what several of them share (`arguments`, `output`,
//! `running`). They know nothing of HTTP requests.

mod arguments;
pub mod bench;
pub mod classify;
mod dataset_args;
pub mod evaluate;
pub mod fit;
pub mod head;
mod labeled;
pub mod models;
mod output;
pub mod parity;
mod running;
pub mod serve;
pub mod validate;

pub use arguments::EnsembleArgs;
use arguments::{TIME_LIMIT, choose_task, read_at_most};
use output::progress_bar;
pub use output::{print_line, warn};
use running::{contained, with_engine, with_tasks};

/// The exit status of a command that could not begin: bad arguments, configuration or snapshots.
pub const EXIT_UNUSABLE: u8 = 2;
