//! `concord classify`: pictures in, verdicts out.

mod print;

use std::fs::File;
use std::io::{IsTerminal, Read, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use concord_actors::Cascade;
use concord_actors::policy::{Decision, Policy};
use concord_models::decode;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{EXIT_UNUSABLE, EnsembleArgs, load_models, say, warn};
use crate::config::{Ensemble, ServerSection};
use crate::inputs::{Input, expand};
use crate::problem::Problem;
use crate::verdict::Verdict;

/// Answer a task for pictures.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when every picture got a verdict, 1 when one did not,\n\
    2 when nothing could be asked (a faulty configuration or a model that does not load).")]
pub struct ClassifyArgs {
    #[command(flatten)]
    ensemble: EnsembleArgs,
    /// The task to answer, as ensemble.toml names it; may be left out where there is only one
    #[arg(long, short)]
    task: Option<String>,
    /// Print one JSON object a line, in the order of the arguments, failures included
    #[arg(long)]
    json: bool,
    /// Pictures, folders of pictures, or glob patterns in quotes
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What became of one picture.
#[derive(Debug)]
struct Outcome {
    file: String,
    request_id: Uuid,
    task: String,
    result: Result<Verdict, Problem>,
}

impl Outcome {
    /// One object: the request, and beside it the verdict's fields, or `error`.
    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("file".to_owned(), Value::from(self.file.as_str()));
        object.insert("request_id".to_owned(), Value::from(self.request_id.to_string()));
        object.insert("task".to_owned(), Value::from(self.task.as_str()));
        match &self.result {
            Ok(verdict) => {
                if let Ok(Value::Object(fields)) = serde_json::to_value(verdict) {
                    object.extend(fields);
                }
            }
            Err(problem) => {
                object.insert("error".to_owned(), json!(problem));
            }
        }
        Value::Object(object)
    }
}

/// Answers all pictures, one after the other.
pub fn run(args: &ClassifyArgs) -> ExitCode {
    match prepare(args) {
        Ok((ensemble, cascade, task)) => {
            let policy = &ensemble.tasks()[&task];
            classify_all(args, &Asking { server: ensemble.server(), cascade: &cascade, task: &task, policy })
        }
        Err(message) => {
            warn(&message);
            ExitCode::from(EXIT_UNUSABLE)
        }
    }
}

/// What every picture of one call is asked with.
struct Asking<'a> {
    server: &'a ServerSection,
    cascade: &'a Cascade,
    task: &'a str,
    policy: &'a Policy,
}

fn prepare(args: &ClassifyArgs) -> Result<(Ensemble, Cascade, String), String> {
    let ensemble = args.ensemble.read()?;
    let task = choose_task(&ensemble, args.task.as_deref())?;
    let cascade = load_models(&ensemble, Some(&task))?;
    Ok((ensemble, cascade, task))
}

fn choose_task(ensemble: &Ensemble, asked: Option<&str>) -> Result<String, String> {
    let names: Vec<&str> = ensemble.tasks().keys().map(String::as_str).collect();
    match asked {
        Some(task) if ensemble.tasks().contains_key(task) => Ok(task.to_owned()),
        Some(task) => Err(format!("no task {task:?} is configured: there is {}", names.join(", "))),
        None if names.len() == 1 => Ok(names[0].to_owned()),
        None => Err(format!("which task? name one with --task: {}", names.join(", "))),
    }
}

fn classify_all(args: &ClassifyArgs, asking: &Asking<'_>) -> ExitCode {
    let inputs = expand(&args.files);
    let progress = progress_bar(inputs.len());
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let mut all_answered = true;
    for input in inputs {
        let outcome = classify_one(input, asking);
        all_answered &= outcome.result.is_ok();
        if args.json {
            say(&outcome.json());
        } else {
            outcomes.push(outcome);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    if !args.json {
        print::table(asking.task, asking.policy, &outcomes, start.elapsed());
    }
    if all_answered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Visible at a terminal only.
fn progress_bar(pictures: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {pos} of {len} pictures, {per_sec}, {eta} to go";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(pictures as u64).with_style(style)
}

fn classify_one(input: Input, asking: &Asking<'_>) -> Outcome {
    let result = match input.fault {
        Some(fault) => Err(Problem::unreadable(&fault)),
        None => verdict_on(&input.path, asking),
    };
    Outcome {
        file: input.path.display().to_string(),
        request_id: Uuid::now_v7(),
        task: asking.task.to_owned(),
        result,
    }
}

fn verdict_on(path: &Path, asking: &Asking<'_>) -> Result<Verdict, Problem> {
    let bytes = read_at_most(path, asking.server.max_body_bytes)?;
    let start = Instant::now();
    let image = decode(&bytes, asking.server.max_pixels)?;
    let decoding = start.elapsed();
    match asking.cascade.answer(asking.task, asking.policy, &image) {
        Decision::Answer(answer) => Ok(Verdict::new(asking.policy, &answer, decoding, start.elapsed())),
        Decision::Failed(failure) => Err(failure.into()),
        Decision::Ask { .. } => unreachable!("the cascade asks until it is decided"),
    }
}

/// A file's bytes. Devices and pipes have no size to ask for beforehand, so what is read is counted.
fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(|error| Problem::unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::unreadable(&error))?;
    if bytes.len() as u64 > limit { Err(Problem::too_many_bytes(limit)) } else { Ok(bytes) }
}
