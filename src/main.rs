//! `concord`: parses the command line and runs one command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use concord::commands::{bench, classify, evaluate, fit, head, models, parity, serve, validate};
use concord::telemetry::log_warnings;
use concord_actors::LogLimit;

/// The allocator. Requests allocate and free many small objects on several threads at once: with the system's
/// allocator, a server answers a fifth fewer of them out of its cache (`make bench`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A request can cause a panic, so that anybody could write such lines.
static PANICS: LogLimit = LogLimit::new();

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
    Serve(serve::ServeArgs),
    Classify(classify::ClassifyArgs),
    Evaluate(Box<evaluate::EvaluateArgs>),
    Fit(Box<fit::FitArgs>),
    Head(head::HeadArgs),
    Models(models::ModelsArgs),
    Validate(validate::ValidateArgs),
    Parity(parity::ParityArgs),
    Bench(Box<bench::BenchArgs>),
}

fn main() -> ExitCode {
    // libtorch's exceptions are panics, caught where models run: they are a line in the log, not a backtrace.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        let line = text.lines().take(2).collect::<Vec<_>>().join(": ");
        PANICS.log("panic", || tracing::error!("{line}"));
    }));
    // Before the first tensor: otherwise libtorch takes this for a machine without a GPU.
    if let Err(error) = concord_models::libtorch::load_cuda() {
        tracing::debug!(%error, "computing on the CPU");
    }
    // For every TLS connection of this process. It fails only if a provider is installed already.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_)) {
        log_warnings();
    }
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Classify(args) => classify::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Head(args) => head::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Validate(args) => validate::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Bench(args) => bench::run(&args),
    }
}
