//! Runs the real `concord` program from the repository's root, as a user would.

pub(crate) mod fault_injection;
pub(crate) mod otlp;
pub(crate) mod redis;
pub(crate) mod scripted;
pub(crate) mod server;
pub(crate) mod transformers;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// The exit status and output of one run of the program.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Parses standard output as one JSON object per line.
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}: {self:?}"))
        };
        self.stdout.lines().map(parse).collect()
    }
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs `concord ARGUMENTS`.
pub(crate) fn concord(arguments: &[&str]) -> Run {
    concord_with(arguments, &[])
}

/// Runs `concord ARGUMENTS` with environment variables; the caller's own `CONCORD_` variables do not reach
/// the program.
pub(crate) fn concord_with(arguments: &[&str], variables: &[(&str, &str)]) -> Run {
    run_of(&command(arguments).envs(variables.iter().copied()).output().unwrap())
}

/// Runs `concord ARGUMENTS` with nobody at the other end of standard output.
pub(crate) fn concord_into_closed_pipe(arguments: &[&str]) -> Run {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = command(arguments).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    run_of(&child.wait_with_output().unwrap())
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_concord"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CONCORD_")) {
        command.env_remove(name);
    }
    // Tests run in parallel, and OpenMP threads that wait for each other across processes take seconds.
    command
        .env("OMP_NUM_THREADS", "1")
        .env("CONCORD_ENSEMBLE", two_models())
        .args(arguments)
        .current_dir(root());
    command
}

fn run_of(output: &Output) -> Run {
    Run {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout.clone()).unwrap(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

/// Reports that a test is left out because something is missing: past the capture of a test's output, so that
/// it is seen. Fails where `CI` is set, since nothing may be missing there.
pub(crate) fn missing(what: &str) {
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!is_ci, "{what}, and where CI is set no test is left out");
    let thread = std::thread::current();
    let line = format!("LEFT OUT {}: {what}\n", thread.name().unwrap_or_default());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Returns the ensemble that most tests run: two models, so that the numbers that tests count are small.
pub(crate) fn two_models() -> PathBuf {
    root().join("tests/fixtures/ensemble.toml")
}

/// Copies that ensemble into a folder of its own, with `edit` applied to its text. The models still load from
/// the repository.
pub(crate) fn edited_ensemble(edit: impl Fn(String) -> String) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let nano = root().join("models/nano");
    let text = std::fs::read_to_string(two_models()).unwrap();
    let text = edit(text).replace("\"../../models/nano", &format!("\"{}", nano.display()));
    let file = folder.path().join("ensemble.toml");
    std::fs::write(&file, text).unwrap();
    (folder, file)
}

/// Replaces `from`, which must be in the text.
pub(crate) fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "the file has no {from:?}");
    text.replace(from, to)
}
