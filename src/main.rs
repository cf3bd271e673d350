//! `concord`: parses the command line and runs one command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use concord::commands::{classify, models, parity, validate};
use tracing_subscriber::EnvFilter;

/// Answers questions about images with a cascade of vision models.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
#[command(after_help = "Diagnostics go to standard error; RUST_LOG=debug shows more of them.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Classify(classify::ClassifyArgs),
    Models(models::ModelsArgs),
    Validate(validate::ValidateArgs),
    Parity(parity::ParityArgs),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    // libtorch's exceptions are panics, contained where models run: a line in the log, not a backtrace.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        tracing::error!("{}", text.lines().take(2).collect::<Vec<_>>().join(": "));
    }));
    // Before the first tensor, or libtorch takes this for a machine without a GPU.
    if let Err(error) = concord_models::libtorch::load_cuda() {
        tracing::debug!(%error, "computing on the CPU");
    }
    match Cli::parse().command {
        Command::Classify(args) => classify::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Parity(args) => parity::run(&args),
    }
}
