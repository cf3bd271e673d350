//! `concord`: parses the command line and runs one command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use concord::commands::parity;

/// Answers questions about images with a cascade of vision models.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Parity(parity::ParityArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Parity(args) => parity::run(&args),
    }
}
