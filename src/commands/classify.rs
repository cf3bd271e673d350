//! `concord classify`: pictures in, verdicts out.

mod print;

use std::fs::File;
use std::io::{IsTerminal, Read, stderr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use actix::Addr;
use concord_actors::policy::Policy;
use concord_actors::{Caller, Classify, Router};
use futures::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::{EXIT_UNUSABLE, EnsembleArgs, say, warn, with_engine};
use crate::config::{Ensemble, ServerSection};
use crate::inputs::{Input, expand};
use crate::problem::{Problem, ProblemKind};
use crate::telemetry::{RequestContext, Sampling};
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

/// Pictures under way at once: while a model runs on one, the next is decoded.
const IN_FLIGHT: usize = 2;
/// Nobody waits at the other end of a connection: the person at the terminal decides how long is too long.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// What became of one picture.
#[derive(Debug)]
struct Outcome {
    file: String,
    request: RequestContext,
    task: String,
    result: Result<Verdict, Problem>,
}

impl Outcome {
    /// One object: the file, and beside it the verdict's fields, or `error`.
    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("file".to_owned(), Value::from(self.file.as_str()));
        match &self.result {
            Ok(verdict) => {
                if let Ok(Value::Object(fields)) = serde_json::to_value(verdict) {
                    object.extend(fields);
                }
            }
            Err(problem) => {
                object.insert("request_id".to_owned(), Value::from(self.request.id.to_string()));
                object.insert("task".to_owned(), Value::from(self.task.as_str()));
                object.insert("error".to_owned(), json!(problem));
            }
        }
        Value::Object(object)
    }
}

/// Answers all pictures, and tells of them in the order of the arguments.
pub fn run(args: &ClassifyArgs) -> ExitCode {
    let answered = args.ensemble.read().and_then(|ensemble| {
        let task = choose_task(&ensemble, args.task.as_deref())?;
        with_engine(&ensemble, Some(&task), async |engine| {
            // Not the configured one: models that are off are not in it.
            let plan = engine.plan();
            let policy = plan.task(&task).map_or(&ensemble.tasks()[&task], |planned| planned.policy());
            let server = ensemble.server();
            classify_all(args, &Asking { server, router: engine.router(), task: &task, policy }).await
        })
    });
    answered.unwrap_or_else(|message| {
        warn(&message);
        ExitCode::from(EXIT_UNUSABLE)
    })
}

/// What every picture of one call is asked with.
struct Asking<'a> {
    server: &'a ServerSection,
    router: Addr<Router>,
    task: &'a str,
    policy: &'a Policy,
}

pub(super) fn choose_task(ensemble: &Ensemble, asked: Option<&str>) -> Result<String, String> {
    let names: Vec<&str> = ensemble.tasks().keys().map(String::as_str).collect();
    match asked {
        Some(task) if ensemble.tasks().contains_key(task) => Ok(task.to_owned()),
        Some(task) => Err(format!("no task {task:?} is configured: there is {}", names.join(", "))),
        None if names.len() == 1 => Ok(names[0].to_owned()),
        None => Err(format!("which task? name one with --task: {}", names.join(", "))),
    }
}

async fn classify_all(args: &ClassifyArgs, asking: &Asking<'_>) -> ExitCode {
    let inputs = expand(&args.files);
    let progress = progress_bar(inputs.len());
    let start = Instant::now();
    let mut outcomes = Vec::new();
    let mut all_answered = true;
    let mut answers = stream::iter(inputs).map(|input| classify_one(input, asking)).buffered(IN_FLIGHT);
    while let Some(outcome) = answers.next().await {
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
pub(super) fn progress_bar(pictures: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = "{bar:30} {pos} of {len} pictures{msg}, {per_sec}, {eta} to go";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(pictures as u64).with_style(style)
}

/// Work that takes seconds or minutes and has no parts to count; visible at a terminal only.
pub(super) fn spinner(message: &str) -> ProgressBar {
    /// How often it turns.
    const TURN: Duration = Duration::from_millis(120);
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    spinner.enable_steady_tick(TURN);
    spinner.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

async fn classify_one(input: Input, asking: &Asking<'_>) -> Outcome {
    let request = Sampling::none().request("classify", None);
    let result = match input.fault {
        Some(fault) => Err(Problem::unreadable(&fault)),
        None => verdict_on(&input.path, asking, &request).await,
    };
    Outcome { file: input.path.display().to_string(), request, task: asking.task.to_owned(), result }
}

async fn verdict_on(path: &Path, asking: &Asking<'_>, request: &RequestContext) -> Result<Verdict, Problem> {
    let image = read_at_most(path, asking.server.max_body_bytes)?.into();
    let (caller, _presence) = Caller::new();
    let question = Classify {
        task: asking.task.to_owned(),
        image,
        deadline: Instant::now() + TIME_LIMIT,
        fresh: false,
        explain: false,
        trace: request.trace.clone(),
        caller,
    };
    let lost = |_| Problem::new(ProblemKind::Internal, "the router did not answer");
    Ok(Verdict::new(request, &asking.router.send(question).await.map_err(lost)??))
}

/// A file's bytes. Devices and pipes have no size to ask for beforehand, so what is read is counted.
pub(super) fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, Problem> {
    let file = File::open(path).map_err(|error| Problem::unreadable(&error))?;
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| Problem::unreadable(&error))?;
    if bytes.len() as u64 > limit { Err(Problem::too_many_bytes(limit)) } else { Ok(bytes) }
}
